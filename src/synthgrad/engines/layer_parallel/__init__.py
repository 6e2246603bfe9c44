"""Runs all layers of a network in one batched step. Start with ``engine.py``."""

from .engine import LayerParallel

__all__ = ["LayerParallel"]

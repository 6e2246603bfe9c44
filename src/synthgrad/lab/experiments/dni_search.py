"""What makes unconditioned DNI learn within a few thousand steps: the record of what was tried.

Measured on 5,000 held-out training examples: the settings of `methods.METHODS` were selected here, and
the test set had no part in it.
"""

from __future__ import annotations

from .config import Cell, RuleSettings, Schedule
from .search import Place, Search

__all__ = ["SEARCH", "TIERS", "VARIANTS", "configs"]

#: One thing varied at a time, around the linear ``M`` of equal learning rate; then what looked best.
VARIANTS: tuple[tuple[str, RuleSettings], ...] = (
    ("dni", RuleSettings()),
    ("dni", RuleSettings(per_example=False)),
    ("dni", RuleSettings(lr_factor=3.0)),
    ("dni", RuleSettings(lr_factor=10.0)),
    ("dni", RuleSettings(hidden=(256,))),
    ("dni", RuleSettings(hidden=(256,), norm=False)),
    ("dni", RuleSettings(hidden=(1024,))),
    ("dni", RuleSettings(hidden=(1024,), lr_factor=3.0)),
    ("dni", RuleSettings(hidden=(1024,), lr_factor=10.0)),
    ("dni", RuleSettings(hidden=(1024, 1024))),
    ("dni", RuleSettings(hidden=(1024, 1024), lr_factor=3.0)),
    ("dni", RuleSettings(like_layer=True)),
    ("dni", RuleSettings(hidden=(256,), lr_factor=10.0)),
    ("dni", RuleSettings(hidden=(1024,), lr_factor=30.0)),
    ("dni", RuleSettings(hidden=(2048,), lr_factor=10.0)),
    ("dni", RuleSettings(hidden=(1024,), norm=False, lr_factor=10.0)),
    ("dni", RuleSettings(hidden=(1024,), lr_factor=100.0)),
    ("dni", RuleSettings(hidden=(2048,), lr_factor=30.0)),
    ("dni", RuleSettings(lr_factor=30.0)),
    ("dni", RuleSettings(hidden=(1024,), lr_factor=30.0, constant_lr=True)),
    ("dni", RuleSettings(hidden=(2048,), lr_factor=30.0, constant_lr=True)),
)

SEARCH = Search(
    "dni_search",
    VARIANTS,
    {
        "smoke": Place(Cell("mnist-10k"), Schedule(steps=60, eval_every=30), 2000),
        "quick": Place(Cell("mnist"), Schedule(steps=6000, eval_every=1000), 5000),
    },
)
TIERS = tuple(SEARCH.places)
configs = SEARCH.configs

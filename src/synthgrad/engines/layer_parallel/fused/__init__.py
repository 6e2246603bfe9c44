"""The fused step: written out by hand, for Linear–BatchNorm–ReLU layers with a linear ``M`` at every cut.

`fused_backend` returns the backend if a network is of this kind; the engine then uses it, unless
``fused=False`` is given. All other networks have the general backend. Both compute the same numbers. The
fused step needs no autograd graph and launches fewer kernels, which take most of the time of a narrow
network's step. The guide on layer-parallel training says how much faster it is, under *By hand or in
general*, from ``results/bench_layer_parallel_general``; the decision record 0009 says how much faster it must
be to be kept.

This folder imports modules that the whole engine shares. Only ``engine.py`` imports from it, and only
`fused_backend`: without this folder the engine could still train every network that it accepts.
"""

from .backend import fused_backend

__all__ = ["fused_backend"]

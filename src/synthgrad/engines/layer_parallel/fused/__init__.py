"""The step that is written out by hand, for Linear–BatchNorm–ReLU layers with a linear ``M`` at every cut.

`fused_backend` looks at a network's parts and returns the step if they are of this kind; the engine takes it then, unless
``fused=False`` is given; all other networks have the general step. Both compute the same numbers. This one needs no graph
of autograd and launches fewer kernels, on which most of a narrow network's step is spent. How much faster it is stands
in the guide on layer-parallel training, under *By hand or in general*, from ``results/bench_layer_parallel_general``; the
decision record 0009 says by how much it must be faster to be kept.

It imports what the engine's other modules share, and of these only ``engine`` imports anything from here, `fused_backend`:
without this folder the engine would still train every network that it takes.
"""

from .backend import fused_backend

__all__ = ["fused_backend"]

"""Engines decide where and in which order the modules of a decoupled network run.

Most engines take a decoupled network, a criterion and an optimizer factory, and offer ``step(x, y)``:

- `Locked` is the plain training loop.
- `InProcess` updates every module as soon as its own forward pass is done.
- `LayerParallel` runs all layers of a network as one batch.
- `Stages` trains the parts of a network in processes of their own.

`Recurrent` is the loop around a `Boundary`, which carries credit from one unroll of a recurrent network to
the unroll before. `Clocked` trains several networks that tick at different rates.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Criterion, StepRecord
    from .carry import Carry
    from .clocked import Clocked, ClockedRecord, Edge, Node
    from .credits import credit_quality
    from .in_process import InProcess, Lag
    from .layer_parallel import LayerParallel
    from .locked import Locked
    from .optimizers import OptimizerFactory, Parameters
    from .penalty import Penalty
    from .recurrent import Boundary, Recurrent
    from .stages import Stages

__all__ = [
    "Boundary",
    "Carry",
    "Clocked",
    "ClockedRecord",
    "Criterion",
    "Edge",
    "InProcess",
    "Lag",
    "LayerParallel",
    "Locked",
    "Node",
    "OptimizerFactory",
    "Parameters",
    "Penalty",
    "Recurrent",
    "Stages",
    "StepRecord",
    "credit_quality",
]

if not TYPE_CHECKING:
    # Each engine is loaded when it is first used: a program that trains in one process need not load transports and compilers.
    _WHERE = {
        "base": ("Criterion", "StepRecord"),
        "carry": ("Carry",),
        "credits": ("credit_quality",),
        "codecs": (),
        "clocked": ("Clocked", "ClockedRecord", "Edge", "Node"),
        "in_process": ("InProcess", "Lag"),
        "layer_parallel": ("LayerParallel",),
        "locked": ("Locked",),
        "optimizers": ("OptimizerFactory", "Parameters"),
        "penalty": ("Penalty",),
        "recurrent": ("Boundary", "Recurrent"),
        "stages": ("Stages",),
    }
    _MODULES = {name: module for module, names in _WHERE.items() for name in names}

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in _MODULES:
            found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
            return globals().setdefault(name, found)
        if name in _WHERE:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_WHERE})

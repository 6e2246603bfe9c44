"""Decoupled neural interfaces for PyTorch: modules that learn without waiting for each other.

>>> import torch, synthgrad as sg
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
>>> x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
>>> net = sg.decouple(model, at=["1"], rule=sg.SyntheticGradient(context=3), example=x)
>>> trainer = sg.engines.InProcess(net, torch.nn.CrossEntropyLoss(), lambda p: torch.optim.Adam(p, 3e-4))
>>> trainer.step(x, y).updated
['1', 'output']
"""

from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from . import core, engines, optim, planner, rules, testing
    from .core import InputRule, Monitor, Rule, SynthgradError, context, decouple, propose_cuts, recouple
    from .rules import (
        HandOver,
        HeadGradient,
        InterlockedLoss,
        LateCorrection,
        LeastSquaresGradient,
        LocalLoss,
        NoBackprop,
        Oracle,
        Sobolev,
        StaleGradient,
        SyntheticGradient,
        SyntheticInput,
        TrueGradient,
    )

__all__ = [
    "HandOver",
    "HeadGradient",
    "InputRule",
    "InterlockedLoss",
    "LateCorrection",
    "LeastSquaresGradient",
    "LocalLoss",
    "Monitor",
    "NoBackprop",
    "Oracle",
    "Rule",
    "Sobolev",
    "StaleGradient",
    "SynthgradError",
    "SyntheticGradient",
    "SyntheticInput",
    "TrueGradient",
    "__version__",
    "context",
    "core",
    "decouple",
    "engines",
    "optim",
    "planner",
    "propose_cuts",
    "recouple",
    "rules",
    "testing",
]

if not TYPE_CHECKING:
    # Loaded when asked for: the command line is part of this package, and its help and completion are not
    # to wait for PyTorch.
    _FOLDERS = ("core", "engines", "optim", "planner", "rules", "testing")

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in _FOLDERS:
            return import_module(f"{__name__}.{name}")
        if name in __all__:
            for folder in ("core", "rules"):
                found = import_module(f"{__name__}.{folder}")
                if name in found.__all__:
                    return globals().setdefault(name, getattr(found, name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

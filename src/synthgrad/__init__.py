"""Decoupled neural interfaces for PyTorch: modules that learn without waiting for each other.

>>> import torch, synthgrad as sg
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
>>> x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
>>> net = sg.decouple(model, at=["1"], rule=sg.SyntheticGradient(context=3), example=x)
>>> trainer = sg.engines.InProcess(net, torch.nn.CrossEntropyLoss(), lambda p: torch.optim.Adam(p, 3e-4))
>>> trainer.step(x, y).updated
['1', 'output']
"""

from . import core, engines, rules
from .core import Monitor, Rule, SynthgradError, context, decouple, propose_cuts, recouple
from .rules import NoBackprop, Oracle, SyntheticGradient
from .version import __version__

__all__ = [
    "Monitor",
    "NoBackprop",
    "Oracle",
    "Rule",
    "SynthgradError",
    "SyntheticGradient",
    "__version__",
    "context",
    "core",
    "decouple",
    "engines",
    "propose_cuts",
    "recouple",
    "rules",
]

"""The heart: the rule protocol, the cut, `decouple` and `recouple`. Imports nothing but torch.

Start with ``rule.py`` (the two questions; ``input_rule.py`` is its mirror image), then ``cut.py`` (the plain loop), ``graph.py`` (what lies
between cuts) and ``decouple.py``.
"""

from .context import context, current
from .decouple import Decoupled, decouple, propose_cuts, recouple
from .errors import (
    ConfigError,
    ContextError,
    CutError,
    DataError,
    DivergedError,
    ShapeError,
    StageError,
    SynthgradError,
)
from .events import Event, Timeline
from .graph import Graph, Module
from .input_rule import InputRule, Supply
from .quality import Guard, Monitor, Quality, quality
from .rule import Credit, Info, Message, Rule
from .site import AtInterface, Site
from .state import StateLayout
from .units import Units

__all__ = [
    "AtInterface",
    "ConfigError",
    "ContextError",
    "Credit",
    "CutError",
    "DataError",
    "Decoupled",
    "DivergedError",
    "Event",
    "Graph",
    "Guard",
    "Info",
    "InputRule",
    "Message",
    "Module",
    "Monitor",
    "Quality",
    "Rule",
    "ShapeError",
    "StageError",
    "Site",
    "StateLayout",
    "Supply",
    "SynthgradError",
    "Timeline",
    "Units",
    "context",
    "current",
    "decouple",
    "propose_cuts",
    "quality",
    "recouple",
]

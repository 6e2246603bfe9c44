"""The heart: the rule protocol, the cut, `decouple` and `recouple`. Imports nothing but torch.

Start with ``rule.py`` (the two questions), then ``cut.py`` (the plain loop), ``graph.py`` (what lies
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
    SynthgradError,
)
from .events import Event, Timeline
from .graph import Graph, Module
from .quality import Guard, Monitor, Quality, quality
from .rule import Credit, Info, Message, Rule, Site
from .units import Units

__all__ = [
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
    "Message",
    "Module",
    "Monitor",
    "Quality",
    "Rule",
    "ShapeError",
    "Site",
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

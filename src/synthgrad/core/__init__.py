"""The heart: the rule protocol, the cut, `decouple` and `recouple`. Imports nothing but torch.

Start with ``rule.py`` (the two questions; ``input_rule.py`` is its mirror image), then ``port.py`` (how every engine asks
them), ``cut.py`` (the plain loop), ``graph.py`` (what lies between cuts) and ``decouple.py``.
"""

from . import timetable
from .context import context, current
from .decouple import decouple, propose_cuts, recouple
from .decoupled import Decoupled
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
from .in_flight import Batch, InFlight
from .input_rule import InputRule, Supply
from .instruments import Instruments
from .port import InputPort, Port
from .quality import Guard, Monitor, Quality, quality
from .rule import Credit, Info, Message, Rule
from .site import AtInterface, Site
from .state import StateLayout
from .units import Units

__all__ = [
    "AtInterface",
    "Batch",
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
    "InFlight",
    "Info",
    "InputPort",
    "InputRule",
    "Instruments",
    "Message",
    "Module",
    "Monitor",
    "Port",
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
    "timetable",
]

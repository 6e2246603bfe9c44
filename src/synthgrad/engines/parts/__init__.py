"""Running one module of a decoupled network alone: in a process of its own, or on another batch than those below.

``parts.py`` finds out how: a Sequential is taken apart as it is; of any other network the user's own forward runs from the
beginning (``forward.py``), with what lies below *absent* (``absent.py``), up to the cut at which the module ends. The parts,
run one after the other, are held against the network itself.
"""

from .forward import ForwardPart, InputSpec
from .side_effects import hide_attributes
from .split import Part, SequencePart, check_nothing_crosses, check_parts, split_network

__all__ = [
    "ForwardPart",
    "InputSpec",
    "Part",
    "SequencePart",
    "check_nothing_crosses",
    "check_parts",
    "hide_attributes",
    "split_network",
]

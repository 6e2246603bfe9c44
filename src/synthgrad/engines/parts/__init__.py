"""Runs one module of a decoupled network alone.

In its own process, or on another batch than the modules below.

``split.py`` decides how. An ``nn.Sequential`` is split into its children. Of any other network the user's own
forward runs from the beginning (``forward.py``) up to the cut at which the module ends, where tensors of the
modules below are *absent* (``absent.py``). In both cases the parts, run one after the other, are compared
with the network itself.
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

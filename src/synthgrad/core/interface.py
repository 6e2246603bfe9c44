"""An interface: the forward hook that sits at a cut and hands the message to whoever is in charge."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from .errors import ShapeError
from .input_rule import InputRule
from .rule import Info, Rule

__all__ = ["Crossing", "Frame", "Interface"]


class Crossing(Protocol):
    """What happens when ``h`` reaches an interface: returns what the module above is fed with."""

    def __call__(self, interface: Interface, h: Tensor) -> Tensor: ...


class Frame:
    """The forward pass at hand of one decoupled network, shared by all its interfaces.

    Attributes:
        info: what is known about the batch.
        crossing: who is in charge of the cuts; None while the network is the plain network.
    """

    def __init__(self) -> None:
        self.info = Info()
        self.crossing: Crossing | None = None


class Interface:
    """Forward hook of the submodule after which a cut lies.

    A plain object, not a module, so that no parameter gets a second name; ``copy.deepcopy`` of the
    network copies it along, with its references to the copied rule and frame.

    Attributes:
        name: name of the submodule, and so of the interface.
        rule: the rule that gives credit here.
        input_rule: the rule that stands in for ``h``; None where the module above is fed with ``h`` itself.
        copies: the module above changes its input in place, so it must be fed with a copy.
    """

    def __init__(
        self, name: str, rule: Rule, frame: Frame, *, copies: bool, input_rule: InputRule | None = None
    ) -> None:
        self.name = name
        self.rule = rule
        self.input_rule = input_rule
        self.frame = frame
        self.copies = copies

    def __call__(self, module: nn.Module, args: tuple[object, ...], output: Tensor) -> Tensor | None:
        crossing = self.frame.crossing
        if crossing is None:
            return None  # leaves the output as it is
        if not torch.is_floating_point(output):
            raise ShapeError(
                f"interface '{self.name}': got a message of dtype {output.dtype}, expected a floating "
                "type as in the example; gradients cannot flow into integers"
            )
        return crossing(self, output)

"""An interface: the forward hook that sits at a cut and hands the message to whoever is in charge."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .errors import CutError, ShapeError
from .input_rule import InputRule
from .outputs import Slot, message_in, with_message
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
        crossed: the interfaces that have been crossed in this pass.
        learns: would the network train if it were run now? Then a cut without anybody in charge, inside a backward
            pass, is one that activation checkpointing runs again.
    """

    def __init__(self) -> None:
        self.info = Info()
        self.crossing: Crossing | None = None
        self.crossed: set[str] = set()
        self.learns = False

    def check_all_crossed(self, names: Iterable[str]) -> None:
        """Refuse a pass that has left a cut out.

        Args:
            names: of all interfaces.

        Raises:
            CutError: naming the cut.
        """
        for name in names:
            if name not in self.crossed:
                raise CutError(
                    f"the cut after '{name}' was not reached in this batch, as it was in the example: its submodule was "
                    "skipped (LayerDrop, a branch), so nothing below it can learn; cut after a submodule that runs in "
                    "every batch, or leave the skipping out"
                )


class Interface:
    """Forward hook of the submodule after which a cut lies.

    A plain object, not a module, so that no parameter gets a second name; ``copy.deepcopy`` of the
    network copies it along, with its references to the copied rule and frame.

    Attributes:
        name: name of the submodule, and so of the interface.
        rule: the rule that gives credit here.
        input_rule: the rule that stands in for ``h``; None where the module above is fed with ``h`` itself.
        copies: the module above changes its input in place, so it must be fed with a copy.
        slot: where the message is in what the submodule returns; None if it is all of it.
        batch_dim: the dimension of the message that is the batch.
    """

    def __init__(
        self,
        name: str,
        rule: Rule,
        frame: Frame,
        *,
        copies: bool,
        input_rule: InputRule | None = None,
        slot: Slot = None,
        batch_dim: int = 0,
    ) -> None:
        self.name = name
        self.rule = rule
        self.input_rule = input_rule
        self.frame = frame
        self.copies = copies
        self.slot = slot
        self.batch_dim = batch_dim

    def batch_first(self, h: Tensor) -> Tensor:
        """Return a message as rules see it, ``(B, ...)``: a view of ``h``, or ``h`` itself."""
        return h if not self.batch_dim else h.movedim(self.batch_dim, 0)

    def as_made(self, h: Tensor) -> Tensor:
        """Return what a rule has made, ``(B, ...)``, in the form of the network's own message."""
        return h if not self.batch_dim else h.movedim(0, self.batch_dim)

    def __call__(self, module: nn.Module, args: tuple[object, ...], output: Any) -> Any:
        frame = self.frame
        crossing = frame.crossing
        if crossing is None:
            if frame.learns and not torch.compiler.is_compiling() and _in_backward():
                raise CutError(
                    f"the cut after '{self.name}' was run again by activation checkpointing in the backward pass; "
                    "checkpoint parts that lie between two cuts, or cut elsewhere"
                )
            return None  # leaves the output as it is
        h = message_in(self.name, output, self.slot)
        if not torch.is_floating_point(h):
            raise ShapeError(
                f"interface '{self.name}': got a message of dtype {h.dtype}, expected a floating "
                "type as in the example; gradients cannot flow into integers"
            )
        if not torch.compiler.is_compiling():
            if self.name in frame.crossed:
                raise CutError(
                    f"the cut after '{self.name}' was reached twice in one batch, and once in the example: its submodule "
                    "ran more than once, so it has more than one message; cut after a module around it that runs once"
                )
            frame.crossed.add(self.name)
        return with_message(output, self.slot, crossing(self, h))


def _in_backward() -> bool:
    """Is this thread inside a backward pass?"""
    return torch._C._current_graph_task_id() != -1  # pyright: ignore[reportPrivateUsage]

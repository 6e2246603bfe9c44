"""Wraps a recurrent module as a part of a chain: its state stays inside, from one unroll to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..core import ShapeError

__all__ = ["Carry", "carried_states", "set_carried_states"]


class Carry(nn.Module):
    """Turns ``module(x, state) -> (outputs, state)`` into a module that takes ``x`` only; a batch is an
    unroll.

    The state is kept between calls, detached (truncated BPTT). It belongs to a run and not to the network: it
    is part of the ``state_dict`` of every engine, and not of the module's. Training mode and evaluation mode
    have a state each, so an evaluation in between does not disturb training. A batch of another size starts
    from a new state.

    With it a stack of recurrent layers is an ``nn.Sequential`` that `decouple` cuts and every engine trains:
    the messages at the cuts are ``(B, T, H)``, the outputs of a whole unroll.

    Args:
        module: ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` with ``batch_first=True``, or any module that takes
            ``(x, state)``, where None stands for the initial state, and returns outputs ``(B, ...)`` and a
            state.

    Raises:
        ShapeError: if the module does not return outputs and a state.

    >>> import torch
    >>> carry = Carry(torch.nn.GRU(4, 8, batch_first=True))
    >>> carry(torch.ones(2, 5, 4)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._states: dict[bool, tuple[int, Any]] = {}

    def reset(self) -> None:
        """Drop the states: the next unroll starts from a new one."""
        self._states.clear()

    def forward(self, x: Tensor) -> Tensor:
        """Run an unroll.

        Args:
            x: the inputs, ``(B, T, ...)``.
        """
        kept = self._states.get(self.training)
        state = kept[1] if kept is not None and kept[0] == x.shape[0] else None
        found: Any = self.module(x, state)
        if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], Tensor):  # pyright: ignore[reportUnknownArgumentType]
            raise ShapeError(
                f"{type(self.module).__name__} returned a {type(found).__name__}, expected a pair of outputs and state; "
                "wrap it in a module that does"
            )
        outputs, state = found
        # Detached: the next unroll continues from the values, but no gradient may flow back into this one.
        self._states[self.training] = (
            x.shape[0],
            pytree.tree_map_only(torch.Tensor, lambda t: t.detach(), state),
        )
        return outputs


def carried_states(model: nn.Module) -> dict[str, dict[bool, tuple[int, Any]]]:
    """Return the present states of the `Carry` modules in a network, by name."""
    return {
        name: dict(module._states)  # pyright: ignore[reportPrivateUsage]
        for name, module in model.named_modules()
        if isinstance(module, Carry)
    }


def set_carried_states(model: nn.Module, states: Mapping[str, Mapping[bool, tuple[int, Any]]]) -> None:
    """Set the states of the `Carry` modules in a network to those that `carried_states` returned."""
    for name, module in model.named_modules():
        if isinstance(module, Carry):
            module._states = {training: tuple(kept) for training, kept in states.get(name, {}).items()}  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]

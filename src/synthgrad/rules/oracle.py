"""The recorded oracle: replays the true messages of an earlier run; the reference of every engine.

With the true gradient as credit, decoupled training must equal backpropagation parameter by parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core import ContextError, Credit, Info, Rule, Units
from ..core.units import Reduction

__all__ = ["Oracle", "Recording", "record_messages"]


@dataclass
class Recording:
    """True messages, ``(B, ...)`` in per-example units, by interface and step."""

    messages: dict[tuple[str, int], Tensor] = field(default_factory=dict[tuple[str, int], Tensor])


def record_messages(
    model: nn.Module,
    at: Sequence[str],
    step: Callable[[nn.Module, Tensor, Any], object],
    batches: Sequence[tuple[Tensor, Any]],
    reduction: Reduction = "mean",
    *,
    ignore_index: int = -100,
) -> Recording:
    """Train ``model`` by backpropagation and keep the gradient at every cut of every step.

    Args:
        model: the plain network; it is trained in place.
        at: names of the submodules after which the cuts lie.
        step: does one whole training step, ``step(model, x, y)``, with one ``backward``.
        batches: the batches ``(x, y)``, in order.
        reduction: how the criterion of ``step`` reduces. Where tokens are counted, ``y`` is their labels, ``(B, T)``.
        ignore_index: the label that means none.
    """
    recording = Recording()
    units = Units(reduction, ignore_index=ignore_index)
    now = 0

    def listen(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            def keep(grad: Tensor) -> None:
                recording.messages[name, now] = units.to_example(grad.detach())

            if output.requires_grad:
                output.register_hook(keep)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(listen(name)) for name in at]
    try:
        for now, (x, y) in enumerate(batches):  # noqa: B007  (the hooks read it)
            units = units.of_batch({}, None, y)
            step(model, x, y)
    finally:
        for handle in handles:
            handle.remove()
    return recording


class Oracle(Rule):
    """Credit from a `Recording`, looked up by interface and step.

    Engines count the steps; in the plain loop say ``with synthgrad.context(y, step=t):``.

    Raises:
        ContextError: if the step is unknown or was not recorded.
    """

    listens = False

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def __deepcopy__(self, memo: dict[int, Any]) -> Oracle:
        twin = Oracle(self._recording)  # the recording is shared: it is read only, and large
        twin.name = self.name
        memo[id(self)] = twin
        return twin

    def credit(self, h: Tensor, info: Info) -> Credit:
        if info.step is None:
            raise ContextError(
                f"interface '{self.name}': the oracle must know the step; run the network inside "
                "`with synthgrad.context(y, step=t):`"
            )
        message = self._recording.messages.get((self.name, info.step))
        if message is None:
            raise ContextError(
                f"interface '{self.name}': no message was recorded for step {info.step}; record as many steps as are run"
            )
        with torch.no_grad():
            return Credit(message.to(h.dtype))

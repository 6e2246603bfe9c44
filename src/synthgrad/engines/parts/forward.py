"""Runs one module of any network alone: the user's own forward, from the beginning to the end of the module.

::

    forward of the network ──► below the part: weights are absent; only what depends on inputs alone is computed
                          1. at the cut below: the received message replaces the absent one
                          2. the part itself runs as usual
                          3. at the cut above: the message is returned, and the forward pass ends
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core import CutError, Decoupled, ShapeError
from ...core.devices import cuda_devices
from ...core.interface import Interface
from ..random_state import RandomState
from .absent import AbsentScope, make_absent
from .inputs import InputSpec

__all__ = ["ForwardPart", "InputSpec"]


#: A dict of parameters or buffers, a key, the tensor that is registered there, and the tensor that replaces it.
_Swap = tuple[dict[str, Any], str, Any, Tensor]


class _StopAtCut(BaseException):
    """Ends a forward pass at the cut above a part. Never leaves `ForwardPart.forward`."""

    def __init__(self, h: Tensor) -> None:
        self.h = h


class ForwardPart(nn.Module):
    """A module between two cuts, run by the network's own forward.

    Its parameters are the network's own, registered here under their names with dots as underscores. So an
    optimizer, or data parallel training, sees the parameters of this part and no others.

    Args:
        net: the network, whose modules form a chain.
        position: the position of the module.
        inputs: the structure of the network's inputs.
        changed: the names of the buffers that the parts below write to in a forward pass; they are absent
            here.
        buffers: the names of the buffers that this part writes to.
    """

    def __init__(
        self,
        net: Decoupled,
        position: int,
        inputs: InputSpec,
        changed: Collection[str] = (),
        buffers: Collection[str] = (),
    ) -> None:
        super().__init__()
        cuts = list(net.interfaces)
        self._whole = [net]  # in a list, so that it is not registered as a submodule
        self._position = position
        self._cuts = {name: k for k, name in enumerate(cuts)}
        self._inputs = inputs
        self._devices = cuda_devices(net)
        self.is_last = position == len(cuts)
        for name in net.graph.modules[position].parameters:
            self.register_parameter(name.replace(".", "_"), net.model.get_parameter(name))  # pyright: ignore[reportArgumentType]
        for name in buffers:
            self.register_buffer(name.replace(".", "_"), net.model.get_buffer(name))
        below = cuts[position - 1] if position else ""
        who = f"the stage below (module '{net.graph.modules[position - 1].name}')" if position else ""
        self._scope = AbsentScope(who, below)
        self._swaps = self._stand_ins(net, position, changed) if position else []

    def _stand_ins(self, net: Decoupled, position: int, changed: Collection[str]) -> list[_Swap]:
        """Return the tensors of the parts below, and what replaces each during a forward pass."""
        below = {p for m in net.graph.modules[:position] for p in m.parameters} | set(net.graph.unowned)
        ids = {id(net.model.get_parameter(n)) for n in below} | {id(net.model.get_buffer(n)) for n in changed}
        made: dict[int, Tensor] = {}
        swaps: list[_Swap] = []
        for module in net.model.modules():
            for kind in (module._parameters, module._buffers):
                for name, tensor in kind.items():
                    if tensor is None or id(tensor) not in ids:
                        continue
                    if id(tensor) not in made:
                        # Code may read the value of a counter, so it is copied; the copy is not used elsewhere.
                        is_counter = not (tensor.is_floating_point() or tensor.is_complex())
                        made[id(tensor)] = tensor.clone() if is_counter else make_absent(tensor, self._scope)
                    swaps.append((kind, name, tensor, made[id(tensor)]))
        return swaps

    def extra_repr(self) -> str:
        net = self._whole[0]
        return f"module '{net.graph.modules[self._position].name}' of {type(net.model).__name__}"

    def forward(self, message: Tensor | None, tensors: Sequence[Tensor]) -> Any:
        """Run the part.

        Args:
            message: the message at the cut below, ``(B, ...)``; None for the first part.
            tensors: the network's inputs; if no part above the first needs an input, only its shape matters.

        Returns:
            The message at the cut above, ``(B, ...)``, or the network's output.

        Raises:
            CutError: if something besides the message crosses a cut in this batch, or a cut is not reached.
            ShapeError: if the message does not have the shape that these inputs give.
        """
        net, learns = self._whole[0], torch.is_grad_enabled()
        args, kwargs = self._inputs.passed(tensors, self._scope if self._position else None)
        scope = self._scope
        scope.open = True
        # Code below the cut may draw random numbers too (DropPath). They are undone at the cut, so that the part draws
        # the same numbers as if it ran alone.
        random_state = RandomState(self._devices) if self._position else None

        def cross(interface: Interface, h: Tensor) -> Tensor:
            at = self._cuts[interface.name]
            if at == self._position:
                raise _StopAtCut(interface.batch_first(h))
            if at < self._position - 1:
                return h
            assert message is not None
            if interface.batch_first(h).shape != message.shape:
                raise ShapeError(
                    f"interface '{interface.name}': received a message of shape {tuple(message.shape)}, and this batch's "
                    f"inputs give {tuple(interface.batch_first(h).shape)}; do all processes read the same batches?"
                )
            scope.open = False
            if random_state is not None:
                random_state.restore()
            torch.set_grad_enabled(learns)
            return interface.as_made(message.clone() if interface.copies else message)

        for kind, name, _, stand_in in self._swaps:
            kind[name] = stand_in
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # it passes nested tensors from layer to layer
        try:
            with net.crossed_by(cross):
                torch.set_grad_enabled(learns and not self._position)
                output = net.model(*args, **kwargs)
                net.check_crossed()
            if not self.is_last:
                raise CutError(f"module '{net.graph.modules[self._position].name}' did not end at its cut")
            return output
        except _StopAtCut as reached:
            return reached.h
        finally:
            scope.open = False
            torch.backends.mha.set_fastpath_enabled(fast)
            torch.set_grad_enabled(learns)
            for kind, name, tensor, _ in self._swaps:
                kind[name] = tensor

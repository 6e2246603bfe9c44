"""What a forward pass leaves behind in each module of a network: buffers that it writes to, tensors in attributes."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core import Decoupled
from ...core.copies import copied
from ...core.devices import cuda_devices
from ...core.interface import Interface
from ..random_state import RandomState
from .absent import AbsentScope, make_absent

__all__ = ["SideEffects", "hide_attributes", "repeatable", "find_side_effects"]

#: Name of a submodule and of an attribute.
_AttributePath = tuple[str, str]


@dataclass(frozen=True, slots=True)
class SideEffects:
    """What the modules of a network leave behind, in order.

    Attributes:
        buffers: names of the buffers that each writes to.
        attributes: where each has put floating tensors that are no buffers, such as a balancing loss.
    """

    buffers: list[frozenset[str]]
    attributes: list[frozenset[_AttributePath]]


def find_side_effects(net: Decoupled, passed: tuple[tuple[Any, ...], dict[str, Any]]) -> SideEffects:
    """Run a batch through a copy of a network, and look what has changed at each cut.

    Args:
        net: the network.
        passed: positional and keyword arguments.
    """
    twin = copied(net)
    # Values are compared: batch normalisation writes without PyTorch's counting it as a change.
    before = {n: b.clone() for n, b in twin.model.named_buffers()}
    kept = _attributes(twin)
    found = SideEffects([], [])

    def close() -> None:
        now = dict(twin.model.named_buffers())
        changed = [n for n, b in before.items() if n in now and not torch.equal(now[n], b)]
        before.update({n: now[n].clone() for n in changed})
        found.buffers.append(frozenset(changed))
        held = _attributes(twin)
        found.attributes.append(frozenset(place for place, t in held.items() if kept.get(place) is not t))
        kept.update(held)

    def cross(interface: Interface, h: Tensor) -> Tensor:
        close()
        return h.clone()

    with repeatable(net) as repeat, twin.crossed_by(cross):
        repeat()
        twin.model(*passed[0], **passed[1])
    close()
    return found


def _attributes(net: Decoupled) -> dict[_AttributePath, Tensor]:
    return {
        (path, name): value
        for path, module in net.model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }


def hide_attributes(net: Decoupled, attributes: Sequence[frozenset[_AttributePath]], position: int) -> None:
    """Put absent tensors where modules of other processes leave theirs: here these would be those of an old batch.

    Args:
        net: the network, in this process.
        attributes: where each of its modules leaves tensors.
        position: of the module that runs here.
    """
    own = attributes[position]
    for k, places in enumerate(attributes):
        if k == position:
            continue
        module = net.graph.modules[k].name
        scope = AbsentScope(f"the process of module '{module}'", net.graph.modules[min(k, position)].name)
        scope.open = False
        for path, name in places - own:
            part = net.model.get_submodule(path)
            value = getattr(part, name, None)
            like = value if isinstance(value, Tensor) else torch.zeros(())
            setattr(part, name, make_absent(like, scope))


@contextmanager
def repeatable(net: Decoupled) -> Generator[Callable[[], None]]:
    """Yield what makes random numbers begin anew; leave their state as it was."""
    state = RandomState(cuda_devices(net))

    def repeat() -> None:
        torch.manual_seed(0)
        random.seed(0)

    with torch.no_grad():
        try:
            yield repeat
        finally:
            state.restore()

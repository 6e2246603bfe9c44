"""Finds the buffers and attributes that a forward pass changes in each module of a network."""

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

__all__ = ["SideEffects", "find_side_effects", "hide_attributes", "repeatable"]

#: The name of a submodule and the name of its attribute.
_AttributePath = tuple[str, str]


@dataclass(frozen=True, slots=True)
class SideEffects:
    """The side effects of the modules of a network, in order.

    Attributes:
        buffers: for each module, the names of the buffers that it writes to.
        attributes: for each module, where it stores floating tensors that are not buffers, such as a
            balancing loss.
    """

    buffers: list[frozenset[str]]
    attributes: list[frozenset[_AttributePath]]


def find_side_effects(net: Decoupled, passed: tuple[tuple[Any, ...], dict[str, Any]]) -> SideEffects:
    """Run a batch through a copy of a network, and record what has changed at each cut.

    Args:
        net: the network.
        passed: positional and keyword arguments.
    """
    twin = copied(net)
    # Values are compared, since PyTorch's version counter does not count what batch normalisation writes.
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
    """Replace attributes of modules that run in other processes by absent tensors.

    Their values are those of an old batch.

    Args:
        net: the network, in this process.
        attributes: for each of its modules, where it stores tensors.
        position: the position of the module that runs in this process.
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
    """Yield a function that resets the random number generators; restore their state at the end."""
    state = RandomState(cuda_devices(net))

    def repeat() -> None:
        torch.manual_seed(0)
        random.seed(0)

    with torch.no_grad():
        try:
            yield repeat
        finally:
            state.restore()

"""What a module keeps that waits over steps: the weights of then, and what it takes to build its graph once more.

A graph that is used some steps after it was built belongs to the weights of then (weight stashing, PipeDream). Graphs
cannot be saved; so a state holds what the forward pass was made of, and a resumed run does that pass again, with the
weights, the inputs and the random numbers of then.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .carry import carried_states, set_carried_states
from .random_state import RandomState

__all__ = ["AutocastState", "ForwardReplay", "WeightStash"]


class WeightStash:
    """The parameters and buffers of a network, as they are now: what is frozen too, for it may thaw meanwhile.

    Args:
        model: the network.
    """

    def __init__(self, model: nn.Module) -> None:
        self._copies: dict[int, torch.UntypedStorage] = {}  # copies, by address
        self.tensors: dict[str, Tensor] = {}
        for name, t in _tensors(model):
            storage = t.untyped_storage()
            if storage.data_ptr() not in self._copies:
                self._copies[storage.data_ptr()] = storage.clone()
            self.tensors[name] = _view_like(self._copies[storage.data_ptr()], t)

    def saved_tensors_hooks(self) -> AbstractContextManager[object]:
        """Return a context in which graphs save this copy in place of the network's own tensors.

        Without it an optimizer would change what they have saved behind their back, which PyTorch refuses.
        """

        def pack(tensor: Tensor) -> Tensor:
            kept = self._copies.get(tensor.untyped_storage().data_ptr())
            if kept is None:
                return tensor
            # A module may have changed a weight or a buffer since, in its own forward pass. To ask an accelerator
            # would have it wait.
            same = tensor.is_cpu and torch.equal(_view_like(kept, tensor), tensor)
            return _view_like(kept, tensor) if same else tensor.clone()

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)


def _tensors(model: nn.Module) -> Generator[tuple[str, Tensor]]:
    """Yield parameters and buffers that hold anything, by name."""
    yield from ((name, p) for name, p in model.named_parameters() if p.numel())
    yield from ((name, b) for name, b in model.named_buffers() if b.numel())


def _view_like(storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    """Return what lies in a copy of a tensor's storage where the tensor itself does."""
    empty = torch.empty(0, dtype=like.dtype, device=like.device)
    return empty.set_(storage, like.storage_offset(), like.shape, like.stride())  # pyright: ignore[reportArgumentType]


@contextmanager
def using_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> Generator[None]:
    """Have a network compute with other weights and buffers inside a block; put its own back at the end, bit by bit."""
    live = dict(_tensors(model))
    present = {name: live[name].detach().clone() for name in tensors}
    with torch.no_grad():
        for name, value in tensors.items():
            live[name].copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in present.items():
                live[name].copy_(value)


class AutocastState:
    """Autocast, as it is set now."""

    def __init__(self) -> None:
        self.settings = {
            device: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            for device in ("cpu", "cuda")
        }

    @contextmanager
    def restored(self) -> Generator[None]:
        """Set it so inside a block."""
        with ExitStack() as stack:
            for device, (enabled, dtype) in self.settings.items():
                if enabled or torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, dtype, enabled=enabled, cache_enabled=False))
            yield


@dataclass(slots=True, eq=False)
class ForwardReplay:
    """What a forward pass was made of.

    Attributes:
        passed: what the network, or its part, was given.
        stash: the weights of then.
        carried: the states that recurrent parts had kept from the batch before.
        devices: indices of the CUDA devices whose random numbers count.
        arithmetic: autocast of then.
        random: the sources of random numbers at the start, ``""``, and behind each interface, by its name.
    """

    passed: Any
    stash: WeightStash
    carried: dict[str, Any] = field(default_factory=dict[str, Any])
    devices: list[int] = field(default_factory=list[int])
    autocast: AutocastState = field(default_factory=AutocastState)
    random: dict[str, RandomState] = field(default_factory=dict[str, RandomState])

    def save_random_state(self, where: str = "") -> None:
        """Note the sources of random numbers as they are now, behind an interface."""
        self.random[where] = RandomState(self.devices)

    def restore_random_state(self, where: str = "") -> None:
        """Make the sources of random numbers as they were there, if the pass has come so far."""
        if where in self.random:
            self.random[where].restore()

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain containers of tensors."""
        return {
            "passed": self.passed,
            "stash": self.stash.tensors,
            "carried": self.carried,
            "autocast": self.autocast.settings,
            "random": {where: state.state_dict() for where, state in self.random.items()},
        }


@contextmanager
def replaying(model: nn.Module, state: Mapping[str, Any], devices: list[int]) -> Generator[ForwardReplay]:
    """Have a network compute as it did in a pass that was saved, with graphs that keep; put all back at the end.

    Args:
        model: the network, or its part.
        state: what `ForwardReplay.state_dict` returned.
        devices: indices of the CUDA devices whose random numbers count.
    """
    present, kept = RandomState(devices), carried_states(model)
    try:
        set_carried_states(model, state["carried"])
        with using_tensors(model, state["stash"]):
            replay = ForwardReplay(state["passed"], WeightStash(model), dict(state["carried"]), devices)
            replay.autocast.settings = dict(state["autocast"])
            replay.random = {w: RandomState.from_state(s, devices) for w, s in state["random"].items()}
            replay.restore_random_state()
            with replay.stash.saved_tensors_hooks(), replay.autocast.restored(), torch.enable_grad():
                yield replay
    finally:
        present.restore()
        set_carried_states(model, kept)

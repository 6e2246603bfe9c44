"""What is needed to run a forward pass a second time, with the same result.

A module that waits for its message keeps its graph over several steps. That graph belongs to the weights at
the time of its forward pass (weight stashing, PipeDream), and graphs cannot be saved. So an engine saves the
conditions of the forward pass instead: inputs, weights, random numbers and autocast. A resumed run repeats
the forward pass under these conditions.
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
    """The parameters and buffers of a network as they are now, for graphs that go back after an update.

    Frozen parameters are copied too, since they may thaw meanwhile.

    Args:
        model: the network.
        like: an earlier stash; what has not changed since is not copied again.
        copies: whether parameters are copied. Otherwise graphs go back through the current ones.

    Attributes:
        tensors: the copies, by name; without copies, the buffers' only.
    """

    def __init__(self, model: nn.Module, like: WeightStash | None = None, *, copies: bool = True) -> None:
        self._copies: dict[int, torch.UntypedStorage] = {}  # by the address of the original
        self._versions: dict[int, int] = {}  # the highest of the tensors in each storage
        self._live: set[int] = set()
        self.tensors: dict[str, Tensor] = {}
        found = list(_tensors(model))
        for _, t in found:
            at = t.untyped_storage().data_ptr()
            self._versions[at] = max(self._versions.get(at, 0), t._version)
        for name, t in found:
            storage = t.untyped_storage()
            at = storage.data_ptr()
            if not copies and isinstance(t, nn.Parameter):
                self._live.add(at)
                continue
            if at not in self._copies:
                same = like is not None and like._versions.get(at) == self._versions[at]
                kept = like._copies.get(at) if like is not None and same else None
                self._copies[at] = storage.clone() if kept is None else kept
            self.tensors[name] = _view_like(self._copies[at], t)

    def saved_tensors_hooks(self) -> AbstractContextManager[object]:
        """Return a context in which graphs save these copies in place of the network's own tensors.

        Without it an optimizer would change the saved tensors in place, and PyTorch refuses to run backward
        then. Without copies graphs keep the parameters themselves, and see every change.
        """

        def pack(tensor: Tensor) -> Tensor:
            at = tensor.untyped_storage().data_ptr()
            if at in self._live:
                return tensor.detach()
            kept = self._copies.get(at)
            if kept is None:
                return tensor
            # A module may have changed a weight or a buffer in its own forward pass, and then the copy is outdated.
            # Only the CPU is asked: to compare values on an accelerator would wait for it.
            same = tensor.is_cpu and torch.equal(_view_like(kept, tensor), tensor)
            return _view_like(kept, tensor) if same else tensor.clone()

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)


def _tensors(model: nn.Module) -> Generator[tuple[str, Tensor]]:
    """Yield the names and values of all parameters and buffers that are not empty."""
    yield from ((name, p) for name, p in model.named_parameters() if p.numel())
    yield from ((name, b) for name, b in model.named_buffers() if b.numel())


def _view_like(storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    """Return the view of a copied storage that corresponds to a tensor's view of the original storage."""
    empty = torch.empty(0, dtype=like.dtype, device=like.device)
    return empty.set_(storage, like.storage_offset(), like.shape, like.stride())  # pyright: ignore[reportArgumentType]


@contextmanager
def using_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> Generator[None]:
    """Replace parameters and buffers of a network inside a block, and restore them bit by bit at the end."""
    live = dict(_tensors(model))
    # Detached clones: the values are written back below, and no graph is to keep them.
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
    """The settings of autocast at the time when the object is created."""

    def __init__(self) -> None:
        self.settings = {
            device: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            for device in ("cpu", "cuda")
        }

    @contextmanager
    def restored(self) -> Generator[None]:
        """Return a context in which autocast has these settings."""
        with ExitStack() as stack:
            for device, (enabled, dtype) in self.settings.items():
                if enabled or torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, dtype, enabled=enabled, cache_enabled=False))
            yield


@dataclass(slots=True, eq=False)
class ForwardReplay:
    """The conditions of a forward pass.

    Attributes:
        passed: the arguments of the network, or of its part.
        stash: a copy of the weights.
        carried: the states of the recurrent parts before the pass.
        devices: the indices of the CUDA devices whose random numbers count.
        autocast: the settings of autocast.
        random: the states of the random number generators at the start (``""``) and behind each interface, by
            its name.
    """

    passed: Any
    stash: WeightStash
    carried: dict[str, Any] = field(default_factory=dict[str, Any])
    devices: list[int] = field(default_factory=list[int])
    autocast: AutocastState = field(default_factory=AutocastState)
    random: dict[str, RandomState] = field(default_factory=dict[str, RandomState])

    @classmethod
    def of_now(
        cls, passed: Any, model: nn.Module, devices: list[int], stash: WeightStash | None = None
    ) -> ForwardReplay:
        """Record the present conditions, before a forward pass whose graph may be needed after its step.

        Args:
            passed: the arguments of the network, or of its part.
            model: the network, or its part.
            devices: the indices of the CUDA devices whose random numbers count.
            stash: of the present weights; None to make one.
        """
        replay = cls(passed, stash or WeightStash(model), carried_states(model), devices)
        replay.save_random_state()
        return replay

    def save_random_state(self, where: str = "") -> None:
        """Save the present state of the random number generators, as the state behind an interface."""
        self.random[where] = RandomState(self.devices)

    def restore_random_state(self, where: str = "") -> None:
        """Set the random number generators to the state behind an interface, if the pass reached it."""
        if where in self.random:
            self.random[where].restore()

    def state_dict(self) -> dict[str, Any]:
        """Return the conditions as plain containers of tensors."""
        return {
            "passed": self.passed,
            "stash": self.stash.tensors,
            "carried": self.carried,
            "autocast": self.autocast.settings,
            "random": {where: state.state_dict() for where, state in self.random.items()},
        }


@contextmanager
def replaying(
    model: nn.Module, state: Mapping[str, Any], devices: list[int], *, copies: bool = True
) -> Generator[ForwardReplay]:
    """Return a context in which a network computes as it did in a saved forward pass.

    Graphs that are built inside keep the weights of that pass. At the end everything is restored.

    Args:
        model: the network, or its part.
        state: what `ForwardReplay.state_dict` returned.
        devices: the indices of the CUDA devices whose random numbers count.
        copies: whether the graphs keep copies of the weights; otherwise they go back through the current ones.
    """
    present, kept = RandomState(devices), carried_states(model)
    try:
        set_carried_states(model, state["carried"])
        with using_tensors(model, state["stash"]):
            stash = WeightStash(model, copies=copies)
            replay = ForwardReplay(state["passed"], stash, dict(state["carried"]), devices)
            replay.autocast.settings = dict(state["autocast"])
            replay.random = {w: RandomState.from_state(s, devices) for w, s in state["random"].items()}
            replay.restore_random_state()
            with replay.stash.saved_tensors_hooks(), replay.autocast.restored(), torch.enable_grad():
                yield replay
    finally:
        present.restore()
        set_carried_states(model, kept)

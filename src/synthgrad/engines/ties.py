"""Parameters that several modules use, such as an embedding that also makes the scores: updated once, from all gradients.

Each module would otherwise update them behind the others' back. Here they belong to no module: what the modules learn adds
up, and at the end of an update all of it is applied together, by an optimizer of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core import ConfigError, Decoupled
from ..core.given import check_whole
from .optimizers import OptimizerFactory, make_optimizers, step_optimizers, zero_grad

__all__ = ["Partner", "TiedParameter", "Ties", "TiedParameters", "check_tied_lag", "tied_parameters"]

#: What modules have learned: gradients by the numbers of the parameter and of the module.
Gradients = dict[tuple[int, int], Tensor]


@dataclass(frozen=True, slots=True)
class TiedParameter:
    """A parameter that several modules use.

    Attributes:
        name: its name in the model.
        parameter: itself.
        users: the positions of the modules, ascending.
    """

    name: str
    parameter: nn.Parameter
    users: tuple[int, ...]


def tied_parameters(net: Decoupled) -> list[TiedParameter]:
    """Return the parameters that several modules of a network use, in the order of the model."""
    users: dict[str, list[int]] = {}
    for k, module in enumerate(net.graph.modules):
        for name in module.parameters:
            users.setdefault(name, []).append(k)
    return [
        TiedParameter(name, net.model.get_parameter(name), tuple(ks))
        for name, ks in users.items()
        if len(ks) > 1
    ]


def check_tied_lag(tied_lag: int | None) -> None:
    """Refuse a lag that is no number of updates.

    Raises:
        ConfigError: if it is below 0 or not whole.
    """
    if tied_lag is not None:
        check_whole("tied_lag", tied_lag, 0, "number of updates")


class Partner(Protocol):
    """The process in which the other modules with tied parameters are."""

    def send(self, update: int, grads: Gradients) -> None:
        """Send what the modules of this process have learned for an update. Does not block."""
        ...

    def receive(self, update: int) -> Gradients:
        """Return what the modules of the other process have learned for an update. Blocks."""
        ...


@dataclass(frozen=True, slots=True)
class TiedParameters:
    """What `Ties` are made of, in an engine.

    Attributes:
        tied: the parameters.
        optimizers: theirs.
    """

    tied: Sequence[TiedParameter]
    optimizers: list[Optimizer]

    @classmethod
    def made(
        cls, net: Decoupled, factory: OptimizerFactory, tied_lag: int | None, *, late: bool
    ) -> TiedParameters:
        """Return the tied parameters that learn, with optimizers; none unless ``tied_lag`` is given.

        Args:
            net: the network.
            factory: the user's.
            tied_lag: the lag of their updates.
            late: whether any module that uses them learns late.
        """
        if tied_lag is None:
            return cls([], [])
        shared = tied_parameters(net)
        if not shared:
            raise ConfigError(
                f"tied_lag={tied_lag}: no two modules of this network share a parameter; leave it out"
            )
        tied = [t for t in shared if t.parameter.requires_grad]
        named = [(t.name, t.parameter) for t in tied]
        made = make_optimizers(factory, "tied parameters", (named, None), late=late or tied_lag > 0)
        return cls(tied, made)


class Ties:
    """Collects the gradients of tied parameters, and updates them.

    Args:
        of: the parameters and their optimizers.
        size: number of microbatches of an update, whose gradients are averaged.
        lag: after how many updates gradients are applied.
        partner: of another process that has the same parameters; None if all modules that use them are in this one.
        first: the position of the first module of this process.

    Attributes:
        made: the number of updates so far.
    """

    def __init__(
        self, of: TiedParameters, size: int, lag: int, partner: Partner | None = None, first: int = 0
    ) -> None:
        self._of = of
        self._size = size
        self._lag = lag
        self._partner = partner
        self._first = first
        self._sums: Gradients = {}
        self._waiting: dict[int, Gradients] = {}
        self.made = 0

    @torch.no_grad()
    def take(self, k: int) -> None:
        """Take the gradients of tied parameters, which are those of the ``k``-th module of this process."""
        position = self._first + k
        for n, tied in enumerate(self._of.tied):
            grad = tied.parameter.grad
            if position not in tied.users or grad is None:
                continue
            tied.parameter.grad = None
            key = n, position
            if key in self._sums:
                self._sums[key].add_(grad)
            else:
                self._sums[key] = grad.detach()

    def end_of_step(self, step: int) -> bool:
        """Update the parameters, if an update is complete; return whether they were.

        Args:
            step: the number of the step.
        """
        if (step + 1) % self._size:
            return False
        update = (step + 1) // self._size - 1
        own, self._sums = self._sums, {}
        if self._partner is not None:
            self._partner.send(update, own)
        self._waiting[update] = own
        due = update - self._lag
        if due not in self._waiting:
            return False  # before the first gradients are old enough
        grads = self._waiting.pop(due)
        if self._partner is not None:
            grads = {**grads, **self._partner.receive(due)}
        return self._apply(grads)

    def forget(self) -> None:
        """Drop what a step that has failed has begun."""
        if self._size == 1:
            self._sums.clear()
        for optimizer in self._of.optimizers:
            zero_grad(optimizer)

    def _apply(self, grads: Mapping[tuple[int, int], Tensor]) -> bool:
        for n, tied in enumerate(self._of.tied):
            total: Tensor | None = None
            for position in tied.users:  # in one order, so that all processes have the same sum
                grad = grads.get((n, position))
                if grad is not None:
                    total = grad if total is None else total + grad
            if total is not None:
                tied.parameter.grad = total / self._size if self._size > 1 else total
        if not grads:
            return False
        step_optimizers(self._of.optimizers)
        self.made += 1
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return what has been learned and not been applied, as plain containers of tensors."""
        return {
            "made": self.made,
            "sums": dict(self._sums),
            "waiting": {update: dict(grads) for update, grads in self._waiting.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.made = int(state["made"])
        self._sums = {key: grad.clone() for key, grad in state["sums"].items()}
        self._waiting = {
            update: {key: grad.clone() for key, grad in grads.items()}
            for update, grads in state["waiting"].items()
        }

"""What the clauses of the contract are tried on: a rule, a small network with its cuts, and batches."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core import Decoupled, Info, Message, Rule, decouple
from ..engines import InProcess, Locked

__all__ = [
    "BATCH",
    "Asked",
    "Broken",
    "Subject",
    "adam",
    "assert_same",
    "demand",
    "floating",
    "seeded",
    "small_network",
    "through_a_file",
]

#: Examples of a batch of the small network.
BATCH = 8


class Broken(Exception):
    """A clause does not hold. Leaves the package as `ContractError`, which names the clause."""


def demand(holds: bool, message: str) -> None:
    """Go on if something holds.

    Raises:
        Broken: if it does not.
    """
    if not holds:
        raise Broken(message)


def adam(parameters: Any) -> torch.optim.Optimizer:
    """Return the optimizer with which the contract trains."""
    return torch.optim.Adam(parameters, 1e-2)


@dataclass(frozen=True)
class Asked:
    """A bound rule, and what it is asked about.

    Attributes:
        rule: at the interface.
        h: ``(B, ...)``, detached.
        info: of the batch.
        message: that may come back; random.
    """

    rule: Rule
    h: Tensor
    info: Info
    message: Message

    def twice(self) -> Asked:
        """Return the same with every example there twice: means over examples stay what they are."""
        both = {"context": self.info.context, "ids": self.info.ids, "inputs": self.info.inputs}
        info = Info(**{name: _repeated(t) for name, t in both.items()}, step=self.info.step)
        message = Message(
            torch.cat([self.message.gradient] * 2),
            _repeated(self.message.loss),
            _repeated(self.message.output_error),
        )
        return Asked(copy.deepcopy(self.rule), torch.cat([self.h] * 2), info, message)

    def again(self) -> Asked:
        """Return the same with a copy of the rule, in which nothing has happened yet."""
        return Asked(copy.deepcopy(self.rule), self.h, self.info, self.message)


@dataclass(frozen=True)
class Subject:
    """A rule in a small network.

    Attributes:
        make: returns the rule, as a user gives it to `decouple`.
        model: the network, in float64.
        at: names of its cuts.
        batches: ``(x, y)``, six or more; ``y`` is the context, too.
        criterion: takes output and target, returns the mean over the batch.
    """

    make: Callable[[], Rule]
    model: nn.Module
    at: Sequence[str]
    batches: Sequence[tuple[Any, Any]]
    criterion: Callable[[Any, Any], Tensor] = F.cross_entropy

    def fits_plain_loop(self) -> bool:
        """Does the plain loop take the rule? It has one backward pass, which neither sends ahead nor corrects."""
        rules = [interface.rule for interface in self.build().interfaces.values()]
        return not any(rule.sends_ahead or rule.corrects for rule in rules)

    def build(
        self, dtype: torch.dtype | None = None, device: str | None = None, rule: Rule | None = None
    ) -> Decoupled:
        """Return the network, decoupled, with this rule or a new one; the same weights every time."""
        rule = self.make() if rule is None else rule
        model = copy.deepcopy(self.model).to(device=device, dtype=dtype)
        with seeded():
            return decouple(model, self.at, rule, self.batch(0, dtype, device)[0]).train()

    def batch(self, k: int, dtype: torch.dtype | None = None, device: str | None = None) -> tuple[Any, Any]:
        """Return a batch, its floating tensors in a dtype."""

        def put(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        x, y = self.batches[k % len(self.batches)]
        return tuple(map(put, x)) if isinstance(x, tuple) else put(x), put(y)

    def step(self, trainer: Any, k: int, dtype: torch.dtype | None = None, device: str | None = None) -> None:
        """Run a step of an engine on a batch."""
        x, y = self.batch(k, dtype, device)
        ids = torch.arange(len(y), device=y.device)
        trainer.step(x, y, ids=ids)

    def run(self, trainer: Any, steps: int, first: int = 0) -> None:
        """Run steps of an engine."""
        for k in range(first, first + steps):
            self.step(trainer, k)

    def trained(self, steps: int = 3, **options: Any) -> Decoupled:
        """Return a network that has been trained for a few steps; in the plain loop, if the rule can be nowhere else."""
        net = self.build()
        engine: Any = Locked if any(i.rule.error_to_h for i in net.interfaces.values()) else InProcess
        self.run(engine(net, self.criterion, adam, **options), steps)
        return net

    def untrained_and_trained(self) -> Iterator[Asked]:
        """Yield what rules are asked that have learned nothing, and then what they are asked after a few steps."""
        yield from self.asked(self.build())
        yield from self.asked(self.trained())

    def asked(self, net: Decoupled, step: int = 3) -> Iterator[Asked]:
        """Yield what the rules of a network are asked about, interface by interface."""
        x, y = self.batch(step)
        kept: dict[str, Tensor] = {}

        def keep(interface: Any, h: Tensor) -> Tensor:
            kept[interface.name] = interface.batch_first(h).detach().clone()
            return h

        args = x if isinstance(x, tuple) else (x,)
        with torch.no_grad(), net.crossed_by(keep):
            output = net.model(*args)
        generator = torch.Generator().manual_seed(1)
        for name, h in kept.items():
            ids = torch.arange(len(h), device=h.device)
            message = Message(
                _random(h, generator),
                _random(h[(slice(None), *[0] * (h.ndim - 1))], generator).abs(),
                _random(output, generator) if isinstance(output, Tensor) else None,
            )
            yield Asked(net.interfaces[name].rule, h, Info(y, ids, step, args[0]), message)


def small_network(classes: int) -> tuple[nn.Module, list[str], list[tuple[Tensor, Tensor]]]:
    """Return a network that every engine takes, its cuts and batches: three equal blocks between two layers, float64."""
    with seeded():
        blocks = [nn.Sequential(nn.Linear(a, 7), nn.Tanh()) for a in (6, 7, 7)]
        model = nn.Sequential(*blocks, nn.Linear(7, classes)).double()
        batches = [
            (torch.randn(BATCH, 6, dtype=torch.float64), torch.randint(0, classes, (BATCH,)))
            for _ in range(8)
        ]
    return model, ["0", "1", "2"], batches


@contextmanager
def seeded(seed: int = 0) -> Generator[None]:
    """Draw from a seed inside; outside random numbers go on as if nothing had been drawn."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def floating(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what a module saves that is floating, by name."""
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point():
            yield name, value


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any], what: str, *, exact: bool) -> None:
    """Compare two state dicts.

    Args:
        found: one.
        expected: the other.
        what: that they are of, for the error.
        exact: to the last bit, or as float64 rounds.

    Raises:
        Broken: naming the first entry that differs.
    """
    demand(
        found.keys() == expected.keys(), f"{what}: other entries, {sorted(found.keys() ^ expected.keys())}"
    )
    for name, value in expected.items():
        if not isinstance(value, Tensor):
            continue
        close = torch.equal if exact else lambda a, b: torch.allclose(a, b, rtol=1e-7, atol=1e-10)
        demand(close(found[name], value), f"{what}: '{name}' differs")


def through_a_file(state: Any) -> Any:
    """Return a state as `torch.save` and `torch.load` bring it back."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def _repeated(t: Tensor | None) -> Tensor | None:
    return None if t is None else torch.cat([t, t])


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

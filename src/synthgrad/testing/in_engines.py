"""The clauses about a rule in engines: every engine trains with it as another one does, or refuses it with a reason.

Each takes a `Subject` and raises `Broken` where the rule does not keep it. An engine may refuse a rule by an error of
the package's own: that is no breach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core import ConfigError, ContextError, CutError, Decoupled
from ..engines import Boundary, Clocked, Edge, InProcess, Lag, LayerParallel, Locked, Node, Recurrent, Stages
from ..engines.stages.transport import run_in_memory
from .subject import BATCH, Subject, adam, assert_same, demand, seeded, through_a_file

__all__ = [
    "clocked",
    "determinism",
    "engines_agree",
    "late",
    "layer_parallel",
    "never",
    "recurrent",
    "resume",
    "stages",
]

Make = Callable[[Decoupled], Any]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Return an optimizer without a memory, so that engines may step it at different times."""
    return torch.optim.SGD(parameters, 0.1)


def _engines(subject: Subject) -> Mapping[str, Make]:
    """Return how to make the engines that take a rule in any network: the plain loop, and in process."""
    made: dict[str, Make] = {}
    if subject.fits_plain_loop():
        made["plain loop"] = lambda net: Locked(net, subject.criterion, adam)
    try:
        InProcess(subject.build(), subject.criterion, adam)
    except ConfigError:  # an error that flows into h, an output error that is not known in time
        return made
    return made | {"in-process engine": lambda net: InProcess(net, subject.criterion, adam)}


def determinism(subject: Subject) -> None:
    """With the same seed a rule gives the same weights, to the last bit."""
    for name, make in _engines(subject).items():
        states = [_after(subject, make, 4) for _ in range(2)]
        assert_same(states[0], states[1], f"two runs of the {name} with one seed", exact=True)


def _after(subject: Subject, make: Make, steps: int) -> Mapping[str, Any]:
    """Return the weights after some steps of an engine."""
    net = subject.build()
    with seeded():
        subject.run(make(net), steps)
    return net.state_dict()


def resume(subject: Subject) -> None:
    """A run that is resumed from a file goes on as if nothing had happened, to the last bit."""
    for name, make in _engines(subject).items():
        _check_resume(subject, make, f"a resumed run of the {name}")


def _check_resume(subject: Subject, make: Make, what: str) -> None:
    with seeded():
        whole = subject.build()
        subject.run(make(whole), 6)
    with seeded():
        half = subject.build()
        first = make(half)
        subject.run(first, 3)
        state = through_a_file({"net": half.state_dict(), "engine": first.state_dict()})
        fresh = subject.build()
        second = make(fresh)
        fresh.load_state_dict(state["net"])
        second.load_state_dict(state["engine"])
        subject.run(second, 3, first=3)
    assert_same(fresh.state_dict(), whole.state_dict(), what, exact=True)


def late(subject: Subject) -> None:
    """Messages may come steps after the credit was given, and be under way while a run is saved."""
    if "in-process engine" not in _engines(subject):
        return
    names = list(subject.build().interfaces)
    lags = {names[0]: Lag(observe=2)}
    make: Make = lambda net: InProcess(net, subject.criterion, adam, lags=lags)  # noqa: E731
    _check_resume(subject, make, f"a resumed run with messages that come late at '{names[0]}'")
    _check_finite(_after(subject, make, 8), "when messages come late")


def never(subject: Subject) -> None:
    """Messages may never come: a rule goes on giving credit, and learns from the next one that does."""
    for asked in subject.asked(subject.trained()):
        for _ in range(3):
            asked.rule.credit(asked.h, asked.info)
        asked.rule.observe(asked.h, asked.info, asked.message)
    if "in-process engine" not in _engines(subject):
        return

    def make(net: Decoupled) -> InProcess:
        generator = torch.Generator().manual_seed(0)
        return InProcess(net, subject.criterion, adam, update_prob=0.4, generator=generator)

    states = [_after(subject, make, 8) for _ in range(2)]
    assert_same(states[0], states[1], "two runs in which some messages never come", exact=True)
    _check_finite(states[0], "when some messages never come")


def _check_finite(state: Mapping[str, Any], when: str) -> None:
    for name, value in state.items():
        demand(
            not isinstance(value, Tensor) or bool(value.isfinite().all()), f"'{name}' is not finite {when}"
        )


def engines_agree(subject: Subject) -> None:
    """The plain loop and the in-process engine compute the same, and every rule with parameters learns something."""
    made = _engines(subject)
    start = subject.build().state_dict()
    states = {name: _after(subject, make, 4) for name, make in made.items()}
    comparable = not _draws(subject) and not _reads_losses(subject)
    for name, state in states.items():
        if comparable and "plain loop" in states:
            assert_same(state, states["plain loop"], f"the {name} and the plain loop", exact=False)
        for cut, rule in subject.build().rules.named_children():
            own = [f"rules.{cut}.{key}" for key, p in rule.named_parameters() if p.requires_grad]
            moved = any(not torch.equal(state[key], start[key]) for key in own)
            demand(moved or not own, f"nothing of the rule at '{cut}' has changed in 4 steps of the {name}")


def _reads_losses(subject: Subject) -> bool:
    """Does a rule learn from the losses in messages, which the plain loop does not know?"""
    for asked in subject.asked(subject.trained()):
        with_losses, without = asked.again(), asked.again()
        without.message.loss, kept = None, without.message.loss
        b = without.rule.observe(without.h, without.info, without.message)
        without.message.loss = kept
        a = with_losses.rule.observe(with_losses.h, with_losses.info, with_losses.message)
        if a is not None and b is not None and not torch.allclose(a, b):
            return True
    return False


def _draws(subject: Subject) -> bool:
    """Does training draw random numbers, so that engines which ask in another order differ?"""
    with seeded():
        net = subject.build()
        before = torch.get_rng_state()
        subject.run(next(iter(_engines(subject).values()))(net), 2)
        return not torch.equal(before, torch.get_rng_state())


def stages(subject: Subject) -> None:
    """Stages that talk through memory compute what the in-process engine does with messages as late."""
    if _draws(subject):
        return
    if (
        subject.make().waits
    ):  # where some modules wait and others do not, the windows of several stages add up
        subject = replace(subject, at=subject.at[:1])
    for window in (0, 1):
        try:
            found = run_in_memory(len(subject.build().graph.modules), _stage, subject, window)
        except (ConfigError, CutError):
            return  # refused, with a reason
        net = subject.build()
        lags = dict.fromkeys(net.interfaces, Lag(observe=window))
        subject.run(InProcess(net, subject.criterion, sgd, lags=lags), 5)
        for state in found:
            assert_same(
                state, net.state_dict(), f"stages with window={window} and the in-process engine", exact=False
            )


def _stage(transport: Any, subject: Subject, window: int) -> Mapping[str, Any]:
    net = subject.build()
    with Stages(
        net, subject.criterion, sgd, window=window, deterministic=True, timeout_s=60, transport=transport
    ) as trainer:
        for k in range(5):
            x, y = subject.batch(k)
            ids = torch.arange(len(y), device=y.device)
            trainer.step(x if transport.rank == 0 or isinstance(x, tuple) else None, y, ids=ids)
        trainer.gather()
    return net.state_dict()


def layer_parallel(subject: Subject) -> None:
    """The layer-parallel engine computes what the in-process engine does with a lag of one step at every interface."""
    if _draws(subject):
        return
    net, same = subject.build(), subject.build()
    try:
        trainer = LayerParallel(net, subject.criterion, sgd)
        subject.run(trainer, 8)
    except (ConfigError, CutError):
        return  # refused, with a reason
    subject.run(InProcess(same, subject.criterion, sgd, lags=trainer.lags), 8)
    assert_same(
        net.state_dict(),
        same.state_dict(),
        "the layer-parallel engine and the in-process engine",
        exact=False,
    )


# -- engines for states and clocks ----------------------------------------------------------------------------


class _Cell(nn.Module):
    """A recurrent network with an explicit state."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(3, 5), nn.Linear(5, classes)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state), state

    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.zeros(batch_size, 5, device=device, dtype=dtype)


def recurrent(subject: Subject) -> None:
    """At the boundary between unrolls a rule gives the same weights with the same seed, also when it is resumed."""
    y = _labels(subject)
    with seeded():
        unrolls = torch.randn(6, BATCH, 4, 3, dtype=torch.float64)

    def make() -> tuple[Recurrent, nn.Module]:
        with seeded():
            net = _Cell(int(y.max()) + 1).double()
            boundary = Boundary(subject.make(), torch.zeros(BATCH, 5, dtype=torch.float64))
        return Recurrent(net, boundary, F.cross_entropy, adam), nn.ModuleList([net, boundary])

    _check_alike(make, lambda trainer, k: trainer.step(unrolls[k], y, context=y), "the recurrent engine")


class _Reads(nn.Module):
    """A node that reads its external data or a message."""

    def __init__(self, sender: str, a: int, b: int) -> None:
        super().__init__()
        self.sender, self.layer = sender, nn.Linear(a, b)

    def forward(self, inputs: Mapping[str, Tensor], state: Any) -> tuple[Tensor, Any]:
        return self.layer(inputs[self.sender]).tanh(), state


def clocked(subject: Subject) -> None:
    """Between nodes with clocks of their own the same holds."""
    y = _labels(subject)
    with seeded():
        x = torch.randn(6, BATCH, 3, dtype=torch.float64)

    def make() -> tuple[Clocked, nn.Module]:
        with seeded():
            nodes = [
                Node("A", _Reads("input", 3, 5).double()),
                Node("B", _Reads("A", 5, int(y.max()) + 1).double()),
            ]
            trainer = Clocked(
                nodes,
                [Edge("A", "B", subject.make())],
                {"B": F.cross_entropy},
                adam,
                example={"A": x[0]},
            )
        return trainer, trainer.net

    ids = torch.arange(BATCH)
    _check_alike(
        make, lambda trainer, k: trainer.step({"A": x[k]}, {"B": y}, context=y, ids=ids), "the clocked engine"
    )


def _labels(subject: Subject) -> Tensor:
    """Return labels for a batch of the engines that have networks of their own."""
    y = subject.batch(0)[1]
    whole = isinstance(y, Tensor) and not y.is_floating_point()
    return torch.arange(BATCH) % (int(y.max()) + 1 if whole else 2)


def _check_alike(
    make: Callable[[], tuple[Any, nn.Module]], step: Callable[[Any, int], object], what: str
) -> None:
    """Train twice, and once more with a break in between; compare."""
    states: list[Mapping[str, Any]] = []
    try:
        for _ in range(2):
            trainer, net = make()
            for k in range(6):
                step(trainer, k)
            states.append(net.state_dict())
        trainer, net = make()
        for k in range(3):
            step(trainer, k)
        saved = through_a_file({"net": net.state_dict(), "engine": trainer.state_dict()})
        trainer, net = make()
        net.load_state_dict(saved["net"])
        trainer.load_state_dict(saved["engine"])
        for k in range(3, 6):
            step(trainer, k)
    except (ConfigError, ContextError, CutError):
        return  # refused, with a reason
    assert_same(states[0], states[1], f"two runs of {what} with one seed", exact=True)
    assert_same(net.state_dict(), states[0], f"a resumed run of {what}", exact=True)

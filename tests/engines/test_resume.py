"""A run that is saved at any step and goes on ends with the very weights that it would have had: bit by bit.

Every rule, lag and kind of network, in process. Rules that have modules wait over steps keep graphs, which no file can
hold: they are built again. Random numbers, running statistics and autocast are those of then.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthgrad as sg
from synthgrad.core import ConfigError, Decoupled
from synthgrad.engines import Carry, InProcess, Lag, Locked
from synthgrad.rules import HandOver, SyntheticInput, TrueGradient
from tests.engines.rule_registry import RULES
from tests.networks import CASES, CLASSES, Case

STEPS = 9
#: The steps after which a run is saved: while lags fill, in the midst, and near the end.
SAVED_AFTER = (1, 4, 6)

LAGS: dict[str, tuple[Lag, ...]] = {  # of the interfaces, in turn
    "none": (Lag(),),
    "observe": (Lag(observe=2),),
    "unequal": (Lag(), Lag(observe=3), Lag(observe=1)),
    "forward": (Lag(forward=1),),
    "both": (Lag(forward=2, observe=1), Lag(), Lag(forward=1)),
}


def dropout() -> nn.Module:
    def part(a: int, b: int) -> nn.Module:
        return nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(0.3))

    return nn.Sequential(part(6, 8), part(8, 8), part(8, 8), nn.Linear(8, CLASSES))


DROPOUT = Case("dropout", dropout, ("0", "1", "2"), (6,))

WAITING: dict[str, Callable[[], sg.Rule]] = {
    "true gradient": TrueGradient,
    "shrunk": lambda: TrueGradient(shrink=0.5),
    "hand-over": lambda: HandOver(sg.SyntheticGradient(context=CLASSES), warm_up=4),
    "hand-over by cosine": lambda: HandOver(sg.SyntheticGradient((6,), CLASSES), min_cosine=0.2),
}


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-2)


def lags_of(case: Case, lags: str) -> dict[str, Lag]:
    given = LAGS[lags]
    return {name: given[k % len(given)] for k, name in enumerate(case.at)}


def build(case: Case, rule: Any, **options: Any) -> tuple[Decoupled, InProcess]:
    torch.manual_seed(2)
    inputs = options.pop("inputs", None)
    net = sg.decouple(case.model(), case.at, rule, case.batch()[0], inputs=inputs)
    if options.get("update_prob", 1) < 1:
        options["generator"] = torch.Generator().manual_seed(5)
    return net, InProcess(net, case.criterion, adam, **options)


def train(
    trainer: InProcess, case: Case, first: int, last: int, around: Any = nullcontext
) -> list[float | None]:
    losses: list[float | None] = []
    for k, (x, y) in enumerate(case.batches(STEPS)[first:last], first):
        torch.manual_seed(100 + k)  # as a run has that puts back its own source of random numbers
        with around():
            record = trainer.step(x, y, ids=torch.arange(len(y)))
        losses.append(None if record.loss is None else float(record.loss))
    return losses


def check(case: Case, make: Callable[[], tuple[Decoupled, InProcess]], around: Any = nullcontext) -> None:
    """Compare a run without a break with runs that were saved after some of its steps."""
    net, trainer = make()
    files: list[bytes] = []
    losses: list[float | None] = []
    for k in range(STEPS):
        losses += train(trainer, case, k, k + 1, around)
        file = io.BytesIO()
        torch.save({"net": net.state_dict(), "engine": trainer.state_dict()}, file)
        files.append(file.getvalue())
    expected = {name: t.clone() for name, t in net.state_dict().items()}
    for k in SAVED_AFTER:
        state = torch.load(io.BytesIO(files[k]), weights_only=True)
        net, trainer = make()
        net.load_state_dict(state["net"])
        before = torch.get_rng_state()
        trainer.load_state_dict(state["engine"])
        assert torch.equal(torch.get_rng_state(), before)
        for name, t in net.state_dict().items():
            assert torch.equal(t, state["net"][name]), f"loading the engine's state has changed {name}"
        assert train(trainer, case, k + 1, STEPS, around) == losses[k + 1 :], f"saved after step {k}"
        for name, t in net.state_dict().items():
            assert torch.equal(t, expected[name]), f"saved after step {k}: {name}"


@pytest.mark.parametrize("lags", LAGS)
@pytest.mark.parametrize("rule", WAITING)
@pytest.mark.parametrize("case", [CASES["batchnorm"], DROPOUT], ids=str)
def test_modules_that_wait_over_steps(case: Case, rule: str, lags: str) -> None:
    check(case, lambda: build(case, WAITING[rule](), lags=lags_of(case, lags)))


@pytest.mark.parametrize("lags", ["none", "observe", "unequal"])
@pytest.mark.parametrize("rule", WAITING)
@pytest.mark.parametrize("case", ["two_headed", "shared_trunk", "residual"])
def test_modules_that_wait_in_networks_that_branch(case: str, rule: str, lags: str) -> None:
    found = CASES[case]
    check(found, lambda: build(found, WAITING[rule](), lags=lags_of(found, lags)))


@pytest.mark.parametrize("lags", ["observe", "both"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule(rule: str, lags: str) -> None:
    case = CASES["batchnorm"]
    check(case, lambda: build(case, RULES[rule](), lags=lags_of(case, lags)))


def mixed() -> dict[str, sg.Rule]:
    return {"0": TrueGradient(), "1": sg.SyntheticGradient(context=CLASSES), "2": TrueGradient()}


@pytest.mark.parametrize("lags", LAGS)
def test_rules_of_both_kinds(lags: str) -> None:
    check(DROPOUT, lambda: build(DROPOUT, mixed(), lags=lags_of(DROPOUT, lags)))


@pytest.mark.parametrize(
    "rule", [TrueGradient, lambda: sg.SyntheticGradient(context=CLASSES)], ids=["waits", "not"]
)
def test_sparse_updates(rule: Any) -> None:
    case = CASES["batchnorm"]
    check(case, lambda: build(case, rule(), lags=lags_of(case, "observe"), update_prob=0.6))


def test_synthetic_inputs() -> None:
    case = CASES["batchnorm"]
    for lags in ({}, dict.fromkeys(case.at, Lag(-1)), dict.fromkeys(case.at, Lag(observe=2))):
        check(
            case,
            lambda lags=lags: build(
                case, sg.SyntheticGradient(context=CLASSES), inputs=SyntheticInput(), lags=lags
            ),
        )


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


def test_autocast_is_set_as_it_was_when_a_graph_is_built_again() -> None:
    class Single(Case):
        """In single precision, as autocast wants it."""

    case = Single("batchnorm", CASES["batchnorm"].make, CASES["batchnorm"].at, (6,))

    def make() -> tuple[Decoupled, InProcess]:
        torch.manual_seed(2)
        net = sg.decouple(
            case.model(torch.float32), case.at, TrueGradient(), case.batch(dtype=torch.float32)[0]
        )
        return net, InProcess(net, case.criterion, adam, lags=lags_of(case, "observe"))

    double = Case.batches
    try:
        Case.batches = lambda self, n, dtype=torch.float32: double(self, n, torch.float32)  # type: ignore[method-assign]
        check(case, make, autocast)
    finally:
        Case.batches = double  # type: ignore[method-assign]


def carrying() -> nn.Module:
    """A stack of recurrent layers whose states go on from batch to batch."""
    return nn.Sequential(
        nn.Unflatten(1, (3, 2)),
        Carry(nn.LSTM(2, 6, batch_first=True)),
        Carry(nn.GRU(6, 6, batch_first=True)),
        nn.Sequential(nn.Flatten(), nn.Linear(18, CLASSES)),
    )


CARRYING = Case("carrying", carrying, ("1", "2"), (6,))


@pytest.mark.parametrize("lags", ["none", "observe", "both"])
@pytest.mark.parametrize("rule", [*WAITING, "cdni"])
def test_states_that_are_carried_from_batch_to_batch(rule: str, lags: str) -> None:
    made = WAITING.get(rule, lambda: sg.SyntheticGradient(context=CLASSES))
    check(CARRYING, lambda: build(CARRYING, made(), lags=lags_of(CARRYING, lags)))


def test_the_plain_loop_carries_states_too() -> None:
    def make() -> tuple[Decoupled, Any]:
        torch.manual_seed(2)
        net = sg.decouple(CARRYING.model(), CARRYING.at, sg.SyntheticGradient(), CARRYING.batch()[0])
        return net, Locked(net, CARRYING.criterion, adam)

    check(CARRYING, make)


def test_a_penalty_of_a_module_that_waits() -> None:
    case = CASES["batchnorm"]

    def decay(own: Any) -> Tensor:
        return 1e-2 * sum(p.square().sum() for p in own)

    check(case, lambda: build(case, TrueGradient(), lags=lags_of(case, "observe"), penalty=decay))


def test_a_run_with_other_weights_under_way_is_another_run() -> None:
    """What is compared above can differ: the stash of a module that waits decides what it learns."""
    case = CASES["batchnorm"]
    net, trainer = build(case, TrueGradient(), lags=lags_of(case, "observe"))
    train(trainer, case, 0, 4)
    state = {"net": net.state_dict(), "engine": trainer.state_dict()}
    ends: list[Tensor] = []
    for factor in (1.0, 1.01):
        for replay in state["engine"]["mail"]["replays"]:
            replay["stash"]["1.0.weight"].mul_(factor)
        twin, second = build(case, TrueGradient(), lags=lags_of(case, "observe"))
        twin.load_state_dict(state["net"])
        second.load_state_dict(state["engine"])
        train(second, case, 4, STEPS)
        ends.append(twin.model[0][0].weight.detach().clone())  # type: ignore[index]
    assert not torch.equal(*ends)


@pytest.mark.parametrize("state", [{}, {"optimizers": []}, {"optimizers": [{}]}, None], ids=repr)
def test_what_is_no_state_of_the_engine_is_refused_in_one_sentence(state: Any) -> None:
    _, trainer = build(CASES["batchnorm"], TrueGradient())
    with pytest.raises(ConfigError, match="does not fit this InProcess engine") as caught:
        trainer.load_state_dict(state)
    assert "\n" not in str(caught.value)


def test_the_state_of_an_engine_with_other_cuts_is_refused() -> None:
    case = CASES["batchnorm"]
    _, trainer = build(case, TrueGradient())
    other = sg.decouple(case.model(), case.at[:1], TrueGradient(), case.batch()[0])
    with pytest.raises(ConfigError, match="build network, cuts, lags and optimizers as they were"):
        InProcess(other, case.criterion, adam).load_state_dict(trainer.state_dict())


@pytest.mark.parametrize("resumed", [False, True])
def test_what_was_frozen_and_is_changed_while_a_module_waits_is_seen_as_it_was(*, resumed: bool) -> None:
    case = CASES["linear"]

    def frozen(net: Decoupled, learns: bool) -> None:
        for p in net.model[2].parameters():  # type: ignore[index]
            p.requires_grad_(learns)

    def first_layer(*, changed: bool) -> Tensor:
        net, trainer = build(case, TrueGradient(), lags={"3": Lag(observe=2)})
        frozen(net, learns=False)
        train(trainer, case, 0, 2)
        if changed:
            net.model[2].weight.data.mul_(3)  # type: ignore[index, union-attr]
        if resumed:
            state = copy.deepcopy({"net": net.state_dict(), "engine": trainer.state_dict()})
            net, trainer = build(case, TrueGradient(), lags={"3": Lag(observe=2)})
            frozen(net, learns=changed)
            net.load_state_dict(state["net"])
            trainer.load_state_dict(state["engine"])
        train(trainer, case, 2, 3)  # the message of the first batch comes now
        return net.model[0].weight.detach().clone()  # type: ignore[index, union-attr]

    torch.testing.assert_close(first_layer(changed=True), first_layer(changed=False), rtol=0, atol=0)

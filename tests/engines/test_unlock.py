"""Complete unlock: modules that are fed with synthetic inputs wait for nothing, in either direction."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, ContextError, CutError, InputRule, Supply, Timeline
from synthgrad.engines import InProcess, Lag, Locked
from synthgrad.rules import SyntheticInput, TrueGradient, convolutional_input, dense_input
from tests.networks import CASES, CLASSES, Case

STEPS = 8


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.05)


def unlocked(case: Case, rule: sg.Rule | None = None, inputs: Any = None) -> sg.core.Decoupled:
    torch.manual_seed(3)
    rule = rule or sg.SyntheticGradient(context=CLASSES)
    return sg.decouple(case.model(), case.at, rule, case.batch()[0], inputs=inputs or SyntheticInput((6,)))


def test_a_module_has_learned_from_a_batch_that_the_one_below_has_not_seen() -> None:
    """The forward lock is gone: on the record, top before bottom, batch by batch."""
    case, timeline = CASES["linear"], Timeline()
    net = unlocked(case)
    lags = dict.fromkeys(case.at, Lag(forward=-1))
    trainer = InProcess(net, case.criterion, sgd, lags=lags, timeline=timeline)
    losses = [trainer.step(x, y).loss for x, y in case.batches(6)]
    assert [loss is None for loss in losses] == [True, True, False, False, False, False]

    def when(kind: str, where: str) -> dict[int, int]:
        return {e.batch: i for i, e in enumerate(timeline.events) if (e.kind, e.where) == (kind, where)}

    top, middle, bottom = when("update", "output"), when("update", "3"), when("forward", "1")
    assert set(top) == {2, 3, 4, 5}
    assert set(bottom) == {0, 1, 2, 3}
    for batch in set(top) & set(bottom):
        assert top[batch] < middle[batch] < bottom[batch]
    # seen from inside the network too: what the user's own modules were run on
    assert [e.batch - e.step for e in timeline.events if e.kind == "forward"] == [-2, -1, 0] * 4


def test_what_the_module_below_makes_does_not_reach_the_one_above() -> None:
    case = CASES["linear"]
    net = unlocked(case)
    trainer = InProcess(net, case.criterion, sgd)
    seen: list[Tensor] = []
    net.model[2].register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))  # type: ignore[index,union-attr,operator]
    x, y = case.batch()
    expected = net.interfaces["1"].input_rule.supply(x, sg.core.Info()).h  # type: ignore[union-attr]
    net.model[0].weight.data.mul_(100)  # type: ignore[index,union-attr,operator]
    trainer.step(x, y)
    assert torch.equal(seen[0], expected)


def by_hand(ahead: int) -> sg.core.Decoupled:
    """One interface: `M` learns at ``ĥ`` and is applied at ``h``; `I` learns from ``h``."""
    case = CASES["linear"]
    net = unlocked(Case("one", case.make, ("1",), case.shape))
    model, rule, inputs = net.model, net.rules["1"], net.inputs["1"]
    below, above = model[:2], model[2:]  # type: ignore[index]
    optimizers = [
        sgd([*below.parameters(), *inputs.parameters()]),
        sgd([*above.parameters(), *rule.parameters()]),
    ]
    batches = case.batches(STEPS)
    for step in range(ahead, STEPS):
        (x, y), (new_x, new_y) = batches[step - ahead], batches[step]
        for optimizer in optimizers:
            optimizer.zero_grad()
        fed = inputs.model(new_x).detach().requires_grad_()  # type: ignore[operator,union-attr]
        h = below(x)
        h.backward(rule.model(h.detach(), y).detach() / len(y))  # type: ignore[operator,union-attr]
        (inputs.model(x) - h.detach()).square().sum().div(len(y)).backward()  # type: ignore[operator,union-attr]
        optimizers[0].step()
        F.cross_entropy(above(fed), new_y).backward()
        assert fed.grad is not None
        message = fed.grad * len(y)
        learned = rule.model.learned(fed.detach(), new_y)  # type: ignore[operator,union-attr]
        error = rule.model(fed.detach(), new_y).detach() - message  # type: ignore[operator,union-attr]
        left = rule.model.correct(error, new_y)  # type: ignore[operator,union-attr]
        learned.backward(2 * left / len(y))
        optimizers[1].step()
    return net


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_equals_the_same_written_out(ahead: int) -> None:
    case = CASES["linear"]
    net = unlocked(Case("one", case.make, ("1",), case.shape))
    trainer = InProcess(net, case.criterion, sgd, lags={"1": Lag(forward=-ahead)})
    for x, y in case.batches(STEPS):
        trainer.step(x, y)
    expected = by_hand(ahead).state_dict()
    for name, value in net.named_parameters():
        assert torch.allclose(value, expected[name], rtol=1e-10, atol=1e-13), f"'{name}' differs"


class Exact(InputRule):
    """Supplies what the module below would make: complete unlock must then change nothing."""

    below: ClassVar[list[Any]] = []

    def supply(self, x: Tensor, info: Any) -> Supply:
        with torch.no_grad():
            return Supply(self.below[0](x))


def test_exact_inputs_change_nothing() -> None:
    case = Case("one", CASES["linear"].make, ("1",), CASES["linear"].shape)
    locked = sg.decouple(case.model(), case.at, sg.SyntheticGradient(context=CLASSES), case.batch()[0])
    reference = InProcess(locked, case.criterion, sgd)
    net = sg.decouple(
        case.model(), case.at, sg.SyntheticGradient(context=CLASSES), case.batch()[0], inputs=Exact()
    )
    Exact.below[:] = [lambda x: net.model[0](x).tanh()]  # type: ignore[index,operator]
    trainer = InProcess(net, case.criterion, sgd)
    for x, y in case.batches(STEPS):
        reference.step(x, y)
        trainer.step(x, y)
    for name, value in net.state_dict().items():
        assert torch.allclose(value, locked.state_dict()[name]), name


@pytest.mark.parametrize("case", [CASES["batchnorm"], CASES["conv"], CASES["two_headed"]], ids=str)
@pytest.mark.parametrize("lag", [Lag(), Lag(observe=2)], ids=str)
def test_input_models_learn_and_everything_stays_finite(case: Case, lag: Lag) -> None:
    net = unlocked(case)
    before = copy.deepcopy(net.state_dict())
    monitor = sg.Monitor(every=1)
    slow = lambda p: torch.optim.SGD(p, 1e-3)  # noqa: E731
    trainer = InProcess(net, case.criterion, slow, lags=dict.fromkeys(case.at, lag), monitor=monitor)
    for x, y in case.batches(6):
        trainer.step(x, y)
    moved = {n: not torch.equal(v, before[n]) for n, v in net.state_dict().items()}
    assert all(moved[f"inputs.{n}"] for n, _ in net.inputs.named_parameters())
    assert all(v.isfinite().all() for v in net.state_dict().values())
    assert set(monitor.collect()) == set(case.at)


def test_in_eval_the_real_composition_is_used() -> None:
    case = CASES["batchnorm"]
    net = unlocked(case).eval()
    x, _ = case.batch()
    assert torch.equal(net(x), sg.recouple(net)(x))
    assert set(sg.recouple(net).state_dict()) == set(case.model().state_dict())


def test_sparse_updates_and_resume_with_batches_ahead() -> None:
    case = CASES["linear"]
    lags = {"1": Lag(forward=-2), "3": Lag(forward=-1, observe=1)}

    def start() -> InProcess:
        generator = torch.Generator().manual_seed(5)
        return InProcess(unlocked(case), case.criterion, sgd, lags=lags, update_prob=0.6, generator=generator)

    whole, half, rest = start(), start(), start()
    batches = case.batches(12)
    for x, y in batches:
        whole.step(x, y)
    for x, y in batches[:7]:
        half.step(x, y)
    rest.net.load_state_dict(half.net.state_dict())
    rest.load_state_dict(half.state_dict())
    for x, y in batches[7:]:
        rest.step(x, y)
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, rest.net.state_dict()[name]), name


def test_an_input_rule_for_one_interface_only() -> None:
    case = CASES["linear"]
    net = unlocked(case, inputs={"3": SyntheticInput(())})
    assert list(net.inputs) == ["3"]
    trainer = InProcess(net, case.criterion, sgd)
    trainer.step(*case.batch())


def test_the_plain_loop_refuses() -> None:
    case = CASES["linear"]
    net = unlocked(case)
    with pytest.raises(ConfigError, match="interface '1' has synthetic inputs"):
        Locked(net, case.criterion, sgd).step(*case.batch())


def test_bad_settings() -> None:
    case = CASES["linear"]
    net = unlocked(case)
    plain = sg.decouple(case.model(), case.at, sg.NoBackprop(), case.batch()[0])
    with pytest.raises(ConfigError, match="only an interface with synthetic inputs"):
        InProcess(plain, case.criterion, sgd, lags={"1": Lag(forward=-1)})
    with pytest.raises(ConfigError, match="waits for nothing"):
        InProcess(net, case.criterion, sgd, lags={"1": Lag(forward=1)})
    heads = CASES["two_headed"]
    branched = unlocked(heads)
    with pytest.raises(ConfigError, match="not a chain"):
        InProcess(branched, heads.criterion, sgd, lags={"trunk": Lag(forward=-1)})
    waiting = unlocked(case, TrueGradient())
    with pytest.raises(ConfigError, match="use one of the two"):
        InProcess(waiting, case.criterion, sgd)
    with pytest.raises(CutError, match="where there is no cut"):
        unlocked(case, inputs={"9": SyntheticInput()})
    with pytest.raises(ConfigError, match="hidden="):
        SyntheticInput((0,))
    with pytest.raises(CutError, match="use dense_input"):
        unlocked(case, inputs=SyntheticInput(model=convolutional_input()))


def test_models_have_the_shape_of_what_they_stand_in_for() -> None:
    case = CASES["conv"]
    for factory in (None, dense_input((5,), norm=False), convolutional_input((3, 4), kernel=3)):
        net = unlocked(case, inputs=SyntheticInput((6,), model=factory))
        x, _ = case.batch()
        h = net.model[0](x)  # type: ignore[index,operator]
        assert net.interfaces["0"].input_rule.supply(x, sg.core.Info()).h.shape == h.shape  # type: ignore[union-attr]


def test_a_network_without_a_tensor_to_begin_with() -> None:
    rule = SyntheticInput()
    with pytest.raises(ContextError, match="is no tensor"):
        rule.check(None, sg.core.Info())


def test_input_models_may_learn_at_a_rate_of_their_own() -> None:
    case = CASES["linear"]
    net = unlocked(case)
    trainer = InProcess(net, case.criterion, sgd, rule_options={"lr": 0.1}, input_options={"lr": 0.2})
    rates = {id(p): g["lr"] for o in trainer.optimizers for g in o.param_groups for p in g["params"]}
    assert {rates[id(p)] for p in net.rules.parameters()} == {0.1}
    assert {rates[id(p)] for p in net.inputs.parameters()} == {0.2}
    assert {rates[id(p)] for p in net.model.parameters()} == {0.05}

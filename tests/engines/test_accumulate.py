"""Updates that are made of several microbatches, in the in-process engine: delays count in updates."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, Credit, Decoupled, DivergedError, Guard, Info, Message, Rule
from synthgrad.core.graph import OUTPUT
from synthgrad.engines import InProcess, Lag
from synthgrad.optim import ErrorFeedback
from synthgrad.rules import HandOver, LocalLoss, TrueGradient
from tests.networks import CASES, Case

AT = ("0", "1")
STEPS = 24


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Linear(5, 6), nn.Tanh()), nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 3)
    ).double()


def batches(steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(4, 5, generator=made, dtype=torch.float64),
            torch.randint(0, 3, (4,), generator=made),
        )
        for _ in range(steps)
    ]


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def trained(rule: Rule, optimizer: Any = momentum, steps: int = STEPS, **settings: Any) -> Decoupled:
    net = sg.decouple(chain(), AT, rule, batches(1)[0][0])
    engine = InProcess(net, F.cross_entropy, optimizer, **settings)
    for x, y in batches(steps):
        engine.step(x, y)
    return net


def lags(observe: int) -> dict[str, Lag]:
    return dict.fromkeys(AT, Lag(observe=observe))


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    expected = theirs.state_dict()
    for name, value in ours.state_dict().items():
        assert torch.allclose(value, expected[name], rtol=1e-10, atol=1e-12), f"'{name}' differs"


def late_by_hand(delays: Sequence[int], size: int, *, feedback: bool = False) -> nn.Module:
    """Each part makes an update of ``size`` gradients of the whole network, ``ceil(delay / size)`` updates late."""
    model = chain()
    optimizers: list[Any] = [momentum(part.parameters()) for part in model]
    late = [-(-delay // size) for delay in delays]
    optimizers = [ErrorFeedback(o) if feedback and d else o for o, d in zip(optimizers, late, strict=True)]
    gradients: list[list[list[Tensor]]] = []  # by step and part, at the weights of then
    for step, (x, y) in enumerate(batches()):
        found = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        gradients.append([list(found[:2]), list(found[2:4]), list(found[4:])])
        if (step + 1) % size:
            continue
        for k, part in enumerate(model):
            group = (step + 1) // size - 1 - late[k]
            if group < 0:
                continue
            of_group = [gradients[t][k] for t in range(group * size, (group + 1) * size)]
            for p, *grads in zip(part.parameters(), *of_group, strict=True):
                p.grad = torch.stack(grads).mean(0)
            optimizers[k].step()
    return model


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_without_delay_an_update_is_that_of_the_larger_batch(size: int) -> None:
    net = trained(TrueGradient(), accumulate=size)
    model = chain()
    optimizer = momentum(model.parameters())
    for first in range(0, STEPS - size + 1, size):
        xs, ys = zip(*batches()[first : first + size], strict=True)
        optimizer.zero_grad()
        F.cross_entropy(model(torch.cat(xs)), torch.cat(ys)).backward()
        optimizer.step()
    assert_same(net.model, model)


@pytest.mark.parametrize("versions", [None, 2])
@pytest.mark.parametrize(("lag", "size"), [(1, 2), (1, 4), (2, 4), (2, 5), (3, 6), (2, 6)])
def test_gradients_are_one_update_late_with_two_versions(lag: int, size: int, versions: int | None) -> None:
    net = trained(TrueGradient(), lags=lags(lag), accumulate=size, versions=versions)
    assert_same(net.model, late_by_hand([2 * lag, lag, 0], size))


@pytest.mark.parametrize(("lag", "size"), [(2, 3), (5, 2), (4, 4)])
def test_longer_delays_count_in_updates(lag: int, size: int) -> None:
    net = trained(TrueGradient(), lags=lags(lag), accumulate=size)
    assert_same(net.model, late_by_hand([2 * lag, lag, 0], size))


@pytest.mark.parametrize(("lag", "size"), [(1, 1), (1, 2), (2, 4)])
def test_error_feedback_extrapolates_late_modules_and_no_others(lag: int, size: int) -> None:
    optimizer = lambda parameters: ErrorFeedback(momentum(parameters))  # noqa: E731
    net = trained(TrueGradient(), optimizer, lags=lags(lag), accumulate=size)
    assert_same(net.model, late_by_hand([2 * lag, lag, 0], size, feedback=True))


def test_error_feedback_leaves_fresh_modules_and_rules_alone() -> None:
    rules = [LocalLoss(3), sg.SyntheticGradient(context=3)]
    for rule in rules:
        plain = trained(rule, lags=lags(2))
        extrapolating = trained(rule, lambda parameters: ErrorFeedback(momentum(parameters)), lags=lags(2))
        assert_same(extrapolating, plain)


def test_error_feedback_reaches_each_optimizer_of_a_list() -> None:
    def optimizers(parameters: Any) -> list[Any]:
        matrices = [p for p in parameters if p.ndim == 2]
        rest = [p for p in parameters if p.ndim != 2]
        return [ErrorFeedback(momentum(matrices)), momentum(rest)]

    net = sg.decouple(chain(), AT, TrueGradient(), batches(1)[0][0])
    engine = InProcess(net, F.cross_entropy, optimizers, lags=lags(1))
    found = [[group.get("late") for group in o.param_groups] for o in engine.optimizers]
    assert found == [[True], [None], [True], [None], [False], [None]]


def paci_by_hand(lag: int, size: int) -> nn.Module:
    """One version of the weights: a part goes back through what its weights are by then, and updates at once."""
    model: Any = chain()
    optimizers = [momentum(part.parameters()) for part in model]
    delays = [2 * lag, lag, 0]
    kept: list[list[Tensor]] = []  # by step: input of each part
    sent: dict[tuple[int, int], Tensor] = {}  # by part and step: gradient of its output
    for step, (x, _) in enumerate(batches()):
        inputs = [x]
        with torch.no_grad():
            for part in model[:-1]:
                inputs.append(part(inputs[-1]))
        kept.append(inputs)
        updates: list[int] = []
        for k in (2, 1, 0):
            born = step - delays[k]
            if born < 0:
                continue
            part, leaf = model[k], kept[born][k].clone().requires_grad_()
            if k == 2:
                F.cross_entropy(part(leaf), batches()[born][1]).backward()
                message = leaf.grad
            else:
                linear: Any = part[0]
                output = kept[born][k + 1]  # the activations are those of then
                error = sent.pop((k, born)) * (1 - output.square())
                for p, grad in ((linear.weight, error.t() @ leaf.detach()), (linear.bias, error.sum(0))):
                    p.grad = grad if p.grad is None else p.grad + grad
                message = error @ linear.weight.detach()
            if k:
                assert message is not None
                sent[k - 1, born] = message
            if (born + 1) % size == 0:
                updates.append(k)
        for k in updates:
            for p in model[k].parameters():
                assert p.grad is not None
                p.grad /= size
            optimizers[k].step()
            optimizers[k].zero_grad()
    return model


@pytest.mark.parametrize(("lag", "size"), [(1, 1), (1, 2), (2, 4), (3, 2)])
def test_with_one_version_graphs_go_back_through_the_current_weights(lag: int, size: int) -> None:
    net = trained(TrueGradient(), lags=lags(lag), accumulate=size, versions=1)
    assert_same(net.model, paci_by_hand(lag, size))


def test_rules_learn_from_the_mean_over_microbatches() -> None:
    net = trained(LocalLoss(3), sgd, 4, accumulate=2)
    by_hand = sg.decouple(chain(), AT, LocalLoss(3), batches(1)[0][0], loss_scale=lambda: 0.5)
    optimizer = torch.optim.SGD(by_hand.parameters(), 0.1)
    for k, (x, y) in enumerate(batches(4)):
        (F.cross_entropy(by_hand(x, context=y), y) / 2).backward()
        if k % 2:
            optimizer.step()
            optimizer.zero_grad()
    assert_same(net, by_hand)


class Noted(TrueGradient):
    """Notes the age of each message."""

    listens = True

    def __init__(self) -> None:
        super().__init__()
        self.ages: list[int | None] = []
        self.seconds: list[float | None] = []

    def observe(self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()) -> None:
        self.ages.append(message.age)
        self.seconds.append(message.age_s)


@pytest.mark.parametrize(
    ("lag", "size", "oldest"), [(0, 1, 0), (1, 1, 1), (3, 1, 3), (3, 3, 1), (3, 4, 1), (4, 2, 2)]
)
def test_messages_know_their_age_in_updates(lag: int, size: int, oldest: int) -> None:
    net = sg.decouple(chain(), ["1"], Noted(), batches(1)[0][0])
    engine = InProcess(net, F.cross_entropy, momentum, lags={"1": Lag(observe=lag)}, accumulate=size)
    for x, y in batches():
        engine.step(x, y)
    rule: Any = net.interfaces["1"].rule
    assert max(rule.ages) == oldest
    assert all(s is not None and 0 <= s < 60 for s in rule.seconds)


class Halved(Rule):
    """Credit that is wrong on purpose: a share of what a fixed matrix makes of the message forward; corrected later."""

    corrects = True

    def __init__(self, weight: float = 1.0, *, recompute: bool = False) -> None:
        super().__init__()
        self.weight = weight
        self.recomputes = recompute

    def credit(self, h: Tensor, info: Info) -> Credit:
        return Credit((0.3 * h).detach())

    def correction(self, delta: Tensor, message: Message, info: Info) -> tuple[Tensor, float]:
        return message.gradient - delta, self.weight


def corrected_by_hand(lag: int, weight: float) -> nn.Module:
    """Credit now; when the true gradient has come, the difference is part of the next update, by the weights of then."""
    model = chain()
    optimizers = [momentum(part.parameters()) for part in model]
    delays = [2 * lag, lag, 0]
    true: list[list[list[Tensor]]] = []
    wrong: list[list[list[Tensor]]] = []
    for step, (x, y) in enumerate(batches()):
        h0 = model[0](x)
        h1 = model[1](h0.detach())
        found = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        true.append([list(found[:2]), list(found[2:4])])
        wrong.append(
            [
                list(torch.autograd.grad(h0, list(model[0].parameters()), 0.3 * h0.detach() / len(x))),
                list(torch.autograd.grad(h1, list(model[1].parameters()), 0.3 * h1.detach() / len(x))),
            ]
        )
        for k in range(2):
            born = (
                step - delays[k] - 1
            )  # its correction has come in the step before this one, after the update
            for n, p in enumerate(model[k].parameters()):
                p.grad = wrong[step][k][n].clone()
                if born >= 0:
                    p.grad += weight * (true[born][k][n] - wrong[born][k][n])
        for p, grad in zip(model[2].parameters(), found[4:], strict=True):
            p.grad = grad
        for optimizer in optimizers:
            optimizer.step()
    return model


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("lag", [0, 1, 3])
def test_credit_is_corrected_when_the_message_comes(lag: int, weight: float) -> None:
    net = trained(Halved(weight), lags=lags(lag))
    assert_same(net.model, corrected_by_hand(lag, weight))


@pytest.mark.parametrize("size", [1, 3])
def test_a_graph_that_is_made_anew_has_the_weights_of_then(size: int) -> None:
    lag = 2
    net = sg.decouple(chain(), ["1"], Halved(0.5, recompute=True), batches(1)[0][0])
    engine = InProcess(net, F.cross_entropy, momentum, lags={"1": Lag(observe=lag)}, accumulate=size)
    model: Any = chain()
    optimizers = [momentum(model[:2].parameters()), momentum(model[2:].parameters())]
    sent: list[Tensor] = []
    held: list[Tensor] | None = None
    for step, (x, y) in enumerate(batches()):
        engine.step(x, y)
        h = model[:2](x)
        leaf = h.detach().requires_grad_()
        F.cross_entropy(model[2](leaf), y).backward()
        assert leaf.grad is not None
        sent.append(leaf.grad - 0.3 * leaf.detach() / len(x))
        h.backward(0.3 * h.detach() / len(x))
        due = (step + 1) % size == 0
        for p, extra in zip(model[:2].parameters(), held or [], strict=False) if due else ():
            p.grad += extra
        held = None if due else held
        for optimizer in optimizers if due else ():
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad /= size
            optimizer.step()
            optimizer.zero_grad()
        if step >= lag:  # the message comes after the update of the step
            old = model[:2](batches()[step - lag][0])
            extra = torch.autograd.grad(old, list(model[:2].parameters()), sent[step - lag] * 0.5)
            held = list(extra) if held is None else [a + b for a, b in zip(held, extra, strict=True)]
    assert_same(net.model, model)


def test_a_module_that_waits_below_one_that_is_corrected_goes_back_through_its_own_weights() -> None:
    """It has no lag of its own, and no rule keeps a graph; yet its message comes two steps late."""
    lag = 2
    rules = {"0": TrueGradient(), "1": Halved(1.0, recompute=True)}
    net = sg.decouple(chain(), AT, rules, batches(1)[0][0])
    engine = InProcess(net, F.cross_entropy, sgd, lags={"1": Lag(observe=lag)})
    model: Any = chain()
    optimizers = [sgd(part.parameters()) for part in model]
    runs: list[tuple[Any, Tensor, Tensor, Tensor, Tensor]] = []
    held: list[Tensor] | None = None
    for step, (x, y) in enumerate(batches()):
        engine.step(x, y)
        lowest = copy.deepcopy(model[0])  # the weights of now
        h0 = lowest(x)
        leaf0 = h0.detach().requires_grad_()
        h1 = model[1](leaf0)
        leaf1 = h1.detach().requires_grad_()
        F.cross_entropy(model[2](leaf1), y).backward()
        wrong = 0.3 * leaf1.detach() / len(x)
        h1.backward(wrong)
        assert leaf0.grad is not None
        assert leaf1.grad is not None
        runs.append((lowest, h0, leaf0.detach(), leaf0.grad, leaf1.grad - wrong))
        for p, extra in zip(model[1].parameters(), held or [], strict=False):
            p.grad += extra
        for optimizer in optimizers[1:]:
            optimizer.step()
            optimizer.zero_grad()
        if step < lag:
            continue
        old, end, fed, first, difference = runs[step - lag]
        again = fed.clone().requires_grad_()
        found = torch.autograd.grad(model[1](again), [*model[1].parameters(), again], difference)
        held = list(found[:2])
        end.backward(first + found[2])
        for p, then in zip(model[0].parameters(), old.parameters(), strict=True):
            p.grad = then.grad
        optimizers[0].step()
    assert_same(net.model, model)


def test_a_module_that_draws_no_update_is_not_updated_by_a_correction() -> None:
    net = sg.decouple(chain(), AT, Nothing(), batches(1)[0][0])
    draws = torch.Generator().manual_seed(3)
    engine = InProcess(net, F.cross_entropy, momentum, update_prob=0.5, generator=draws)
    same = torch.Generator().manual_seed(3)
    skipped = 0
    for x, y in batches():
        before = [p.detach().clone() for p in net.model[0].parameters()]
        engine.step(x, y)
        if not (torch.rand(3, generator=same) < 0.5).tolist()[0]:
            skipped += 1
            assert all(map(torch.equal, before, net.model[0].parameters()))
    assert 5 < skipped < STEPS - 5


def steep(outputs: Tensor, targets: Tensor) -> Tensor:
    return 1e3 * F.cross_entropy(outputs, targets)


def test_a_correction_that_overflows_is_never_learned_from() -> None:
    for skip in (False, True):
        net = sg.decouple(chain(), AT, Halved(1e308), batches(1)[0][0])
        guard = Guard(skip=skip)
        engine = InProcess(net, steep, sgd, guard=guard)
        (x, y), *_ = batches()
        if skip:
            engine.step(x, y)
            engine.step(x, y)
            assert guard.skipped
            assert all(bool(p.isfinite().all()) for p in net.model.parameters())
        else:
            with pytest.raises(DivergedError, match="gradient"):
                engine.step(x, y)


def test_error_feedback_ends_when_a_module_waits_no_longer() -> None:
    rule = HandOver(LocalLoss(3), warm_up=3)
    net = sg.decouple(chain(), ["1"], rule, batches(1)[0][0])
    engine = InProcess(net, F.cross_entropy, lambda p: ErrorFeedback(sgd(p)), lags={"1": Lag(observe=1)})
    own = next(
        group
        for group in engine.optimizers[0].param_groups
        if any(p is net.model[0][0].weight for p in group["params"])
    )
    marks: list[bool] = []
    for x, y in batches(7):
        engine.step(x, y)
        marks.append(own["late"])
    # In the step after the warm-up the module makes two updates: its own, and the last that has waited.
    assert marks == [True] * 4 + [False] * 3
    before = [p.detach().clone() for p in net.model[:2].parameters()]
    x, y = batches(8)[7]
    twin = copy.deepcopy(net)
    engine.step(x, y)
    head: Any = twin.interfaces["1"].rule
    h = twin.model[:2](x)
    delta = head.credit(h.detach(), Info(context=y)).delta
    grads = torch.autograd.grad(h, list(twin.model[:2].parameters()), delta / len(x))
    for p, was, grad in zip(net.model[:2].parameters(), before, grads, strict=True):
        assert torch.allclose(p, was - 0.1 * grad, rtol=1e-10, atol=1e-12)


class Ahead(TrueGradient):
    """Interlocked: sends a gradient of its own down at once, and the module waits for what comes from above."""

    sends_ahead = True

    def credit(self, h: Tensor, info: Info) -> Credit:
        return Credit(None, wait=True, sends=(0.3 * h).detach())


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_what_is_sent_ahead_goes_one_hop(lag: int) -> None:
    net = trained(Ahead(), lags=lags(lag))
    model = chain()
    optimizers = [momentum(part.parameters()) for part in model]
    kept: list[list[list[Tensor]]] = []
    for step, (x, y) in enumerate(batches()):
        h0 = model[0](x)
        h1 = model[1](h0)
        # The lowest part learns from what the interface above the second one sends; the second from the true loss.
        first = torch.autograd.grad(
            h1, list(model[0].parameters()), 0.3 * h1.detach() / len(x), retain_graph=True
        )
        rest = torch.autograd.grad(F.cross_entropy(model[2](h1), y), list(model[1:].parameters()))
        kept.append([list(first), list(rest[:2]), list(rest[2:])])
        for k, delay in enumerate((lag, lag, 0)):
            if step < delay:
                continue
            for p, grad in zip(model[k].parameters(), kept[step - delay][k], strict=True):
                p.grad = grad
            optimizers[k].step()
    assert_same(net.model, model)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        (TrueGradient(), {"accumulate": 3}),
        (TrueGradient(), {"lags": lags(1), "accumulate": 4}),
        (TrueGradient(), {"lags": lags(3), "accumulate": 2}),
        (Halved(0.5), {"lags": lags(2)}),
        (Halved(0.5), {"lags": lags(2), "accumulate": 2}),
        (Halved(0.5, recompute=True), {"lags": lags(2)}),
        (Ahead(), {"lags": lags(2), "accumulate": 2}),
        (sg.SyntheticGradient(context=3), {"lags": lags(1), "accumulate": 2}),
    ],
    ids=str,
)
@pytest.mark.parametrize("at", [5, 6, 7])
def test_a_run_is_resumed_bit_by_bit(rule: Rule, settings: Any, at: int, fused: bool) -> None:
    adam = partial(torch.optim.Adam, fused=fused)  # a fused optimizer changes tensors without a new version
    whole = trained(rule, adam, **settings)
    first = sg.decouple(chain(), AT, rule, batches(1)[0][0])
    engine = InProcess(first, F.cross_entropy, adam, **settings)
    for x, y in batches()[:at]:
        engine.step(x, y)
    file = io.BytesIO()
    torch.save({"net": first.state_dict(), "engine": engine.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second = sg.decouple(chain(), AT, rule, batches(1)[0][0])
    engine = InProcess(second, F.cross_entropy, adam, **settings)
    second.load_state_dict(state["net"])
    engine.load_state_dict(state["engine"])
    for x, y in batches()[at:]:
        engine.step(x, y)
    for name, value in second.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"accumulate": 0}, "accumulate=0: expected the number of microbatches of an update, at least 1"),
        ({"accumulate": 1.5}, "accumulate=1.5"),
        ({"accumulate": True}, "accumulate=True"),
        ({"versions": 3}, r"versions=3: expected 1 \(PACI\), 2 \(2BW\), or None"),
        (
            {"versions": 2, "lags": lags(2), "accumulate": 3},
            "module '0' learns 4 microbatches .* take accumulate=4",
        ),
        ({"accumulate": 2, "update_prob": 0.5}, "accumulate=2 with update_prob=0.5"),
    ],
)
def test_what_cannot_be_is_refused(settings: Any, match: str) -> None:
    net = sg.decouple(chain(), AT, TrueGradient(), batches(1)[0][0])
    with pytest.raises(ConfigError, match=match):
        InProcess(net, F.cross_entropy, momentum, **settings)


def test_two_versions_are_kept_and_no_more() -> None:
    model = copy.deepcopy(chain())
    net = sg.decouple(model, ["1"], TrueGradient(), batches(1)[0][0])
    engine = InProcess(net, F.cross_entropy, momentum, lags={"1": Lag(observe=4)}, accumulate=4, versions=2)
    for x, y in batches(15):
        engine.step(x, y)
    in_flight = engine._mailboxes._boxes["1"].down  # pyright: ignore[reportPrivateUsage]
    copies = {
        id(storage)
        for flight in in_flight
        for storage in flight.release.module_step.replay.stash._copies.values()  # type: ignore[union-attr]
    }
    assert len(in_flight) == 4
    assert len(copies) == 2 * len(list(net.model.parameters()))


class Nothing(Halved):
    """Credit of zero; all that a module learns is the correction."""

    def credit(self, h: Tensor, info: Info) -> Credit:
        return Credit(torch.zeros_like(h))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_corrections_pass_through_branches_and_any_network(case: Case) -> None:
    net = sg.decouple(case.model(), case.at, Nothing(), case.batch()[0])
    if any(OUTPUT in m.ends and len(m.ends) > 1 for m in net.graph.modules):
        pytest.skip("a module ends in the output and at a cut, so it learns in two parts")
    engine = InProcess(net, case.criterion, sgd)
    model = case.model()
    late = {n for m in net.graph.modules if OUTPUT not in m.ends for n in m.parameters}
    held: dict[str, Tensor] = {}
    for x, y in case.batches(6):
        engine.step(x, y)
        model.zero_grad()
        loss = case.criterion(model(x), y)
        (loss if loss.ndim == 0 else loss.mean()).backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                assert p.grad is not None
                now = held.get(name) if name in late else p.grad
                held[name] = p.grad.clone()
                if now is not None:
                    p -= 0.1 * now
    assert_same(net.model, model)

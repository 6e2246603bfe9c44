"""The layer-parallel engine as a part: several networks at once, resuming, other engines, settings, bad input."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad import rules
from synthgrad.core import ConfigError, ContextError, DivergedError, Rule, ShapeError
from synthgrad.engines import InProcess, LayerParallel
from tests.engines.test_layer_parallel import RULES, STACKS, STEPS, Stack, adam, assert_same, run, sgd
from tests.networks import CASES, CLASSES, block

DENSE = STACKS["dense"]

# Several networks


@pytest.mark.parametrize("stack", ["dense", "conv", "attention"])
@pytest.mark.parametrize("rule", ["cdni", "cdni-hidden", "local_loss", "sobolev", "no_bprop"])
@pytest.mark.parametrize("fused", [None, False])
def test_networks_side_by_side_learn_as_each_alone(stack: str, rule: str, fused: bool | None) -> None:
    chosen = STACKS[stack]
    nets = [chosen.net(RULES[rule](), seed) for seed in range(3)]
    alone = copy.deepcopy(nets)
    rates = [1e-3, 2e-3, 3e-3]
    factories = [lambda p, lr=lr: torch.optim.SGD(p, lr, momentum=0.9) for lr in rates]
    engine = LayerParallel(nets, F.cross_entropy, factories, fused=fused, observe=1)
    singles = [
        InProcess(net, F.cross_entropy, factory, lags=engine.lags)
        for net, factory in zip(alone, factories, strict=True)
    ]
    for step in range(STEPS):
        batches = [chosen.batch(10 * step + k) for k in range(3)]
        found = engine.step(*(torch.stack(parts) for parts in zip(*batches, strict=True)))
        theirs = [single.step(*batch) for single, batch in zip(singles, batches, strict=True)]
        assert found.updated == theirs[0].updated
        if theirs[0].loss is not None:
            assert found.loss is not None
            assert torch.allclose(found.loss, torch.stack([t.loss for t in theirs if t.loss is not None]))
    for net, single in zip(nets, alone, strict=True):
        assert_same(net, single)


def test_networks_side_by_side_with_losses_of_each_example() -> None:
    nets = [DENSE.net(RULES["sobolev"](), seed) for seed in range(2)]
    alone = copy.deepcopy(nets)
    criterion = nn.CrossEntropyLoss(reduction="none")
    engine = LayerParallel(nets, criterion, sgd)
    singles = [InProcess(net, criterion, sgd, lags=engine.lags) for net in alone]
    for step in range(STEPS):
        batches = [DENSE.batch(10 * step + k) for k in range(2)]
        engine.step(*(torch.stack(parts) for parts in zip(*batches, strict=True)))
        for single, batch in zip(singles, batches, strict=True):
            single.step(*batch)
    for net, single in zip(nets, alone, strict=True):
        assert_same(net, single)


def test_networks_of_different_shape_are_refused() -> None:
    other = Stack(lambda: nn.Sequential(block(6, 9), block(9, 9), block(9, 9), nn.Linear(9, 5)), (6,), 4)
    wide = Stack(lambda: nn.Sequential(*(block(a, 9) for a in (6, 9, 9, 9)), nn.Linear(9, 5)), (6,))
    nets = {k: s.net(RULES["cdni"]()) for k, s in (("own", DENSE), ("short", other), ("wide", wide))}
    with pytest.raises(ConfigError, match="4 modules and network 0 5"):
        LayerParallel([nets["own"], nets["short"]], F.cross_entropy, sgd)
    with pytest.raises(
        ConfigError, match="block '0 of network 0' and block '0 of network 1' .* out_features 8 against 9"
    ):
        LayerParallel([nets["own"], nets["wide"]], F.cross_entropy, sgd)
    with pytest.raises(ConfigError, match="rule at interface"):
        LayerParallel([nets["own"], DENSE.net(RULES["dni"]())], F.cross_entropy, sgd)
    with pytest.raises(ConfigError, match="reduction"):
        LayerParallel([nets["own"], DENSE.net(RULES["cdni"](), reduction="sum")], F.cross_entropy, sgd)
    with pytest.raises(ConfigError, match="2 optimizer factories for 1"):
        LayerParallel([nets["own"]], F.cross_entropy, [sgd, sgd])
    with pytest.raises(ConfigError, match="no network"):
        LayerParallel([], F.cross_entropy, sgd)
    with pytest.raises(ConfigError, match="monitor"):
        LayerParallel([nets["own"]] * 2, F.cross_entropy, sgd, monitor=sg.Monitor())


# The network stays an ordinary network


@pytest.mark.parametrize("fused", [None, False])
def test_weights_go_in_and_out(fused: bool | None) -> None:
    net = DENSE.net(RULES["cdni"]())
    plain = DENSE.make().double()
    engine = LayerParallel(net, F.cross_entropy, sgd, fused=fused)
    net.model.load_state_dict(plain.state_dict())  # after the engine was made
    x, y = DENSE.batch(0)
    engine.step(x, y)
    assert_same(net.model[1:], plain[1:])  # type: ignore[index]  (no batch has reached the rest)
    with pytest.raises(AssertionError, match="differs"):
        assert_same(net.model, plain)
    run(engine, [DENSE.batch(k) for k in range(STEPS)])
    plain.load_state_dict(net.model.state_dict())
    assert torch.equal(plain.eval()(x), net.eval()(x))
    assert torch.equal(sg.recouple(net)(x), net(x))
    assert_same(copy.deepcopy(net), net)


def test_other_engines_go_on_from_it_and_it_from_them() -> None:
    net = DENSE.net(RULES["cdni"]())
    twin = copy.deepcopy(net)
    batches = [DENSE.batch(k) for k in range(STEPS)]
    for trained in (net, twin):
        run(InProcess(trained, F.cross_entropy, sgd), batches)
    ours = LayerParallel(net, F.cross_entropy, sgd)
    theirs = InProcess(twin, F.cross_entropy, sgd, lags=ours.lags)
    run(ours, batches)
    run(theirs, batches)
    for trained in (net, twin):
        run(InProcess(trained, F.cross_entropy, adam), batches)
    assert_same(net, twin, 1e-8)  # Adam divides rounding errors by tiny second moments


def test_an_engine_whose_network_was_moved_says_so() -> None:
    net = DENSE.net(RULES["cdni"]())
    engine = LayerParallel(net, F.cross_entropy, sgd)
    engine.step(*DENSE.batch(0))
    LayerParallel(net, F.cross_entropy, sgd)
    with pytest.raises(ConfigError, match="have been moved"):
        engine.step(*DENSE.batch(0))


@pytest.mark.parametrize("rule", ["cdni", "cdni-hidden", "local_loss", "sobolev", "stale"])
@pytest.mark.parametrize("make", [sgd, adam], ids=["sgd", "adam"])
@pytest.mark.parametrize("at", [0, 3, 9])
def test_resume_from_a_file_continues_as_if_nothing_had_happened(rule: str, make: Any, at: int) -> None:
    def start() -> LayerParallel:
        return LayerParallel(DENSE.net(RULES[rule]()), F.cross_entropy, make, observe=2)

    batches = [DENSE.batch(k) for k in range(STEPS)]
    whole, first, second = start(), start(), start()
    run(whole, batches)
    run(first, batches[:at])
    buffer = io.BytesIO()
    torch.save({"net": first.net.state_dict(), "engine": first.state_dict()}, buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    second.net.load_state_dict(state["net"])
    second.load_state_dict(state["engine"])
    for k, (x, y) in enumerate(batches[at:], at):
        second.step(x, y, ids=torch.arange(len(y)) + 6 * (k % 4))
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, second.net.state_dict()[name]), f"'{name}' differs"


@pytest.mark.parametrize("optimizer", [sgd, adam], ids=["sgd", "adam"])
def test_settings_changed_on_the_way_are_heeded(optimizer: Any) -> None:
    net = DENSE.net(RULES["cdni"]())
    twin = copy.deepcopy(net)
    ours = LayerParallel(net, F.cross_entropy, optimizer)
    theirs = InProcess(twin, F.cross_entropy, optimizer, lags=ours.lags)
    schedules = [
        torch.optim.lr_scheduler.StepLR(o, 3, 0.5) for engine in (ours, theirs) for o in engine.optimizers
    ]
    for k in range(20):
        x, y = DENSE.batch(k)
        for engine in (ours, theirs):
            engine.step(x, y)
            if k == 12:
                for o in engine.optimizers:
                    o.param_groups[0]["weight_decay"] = 0.1
            if k == 15:  # as a user would that goes back to an older state
                for o in engine.optimizers:
                    o.load_state_dict(copy.deepcopy(o.state_dict()))
        if k >= 5:
            for schedule in schedules:
                schedule.step()
    assert_same(net, twin, 1e-8)


def test_dropout_differs_from_layer_to_layer() -> None:
    class Kept(nn.Module):
        """Drops out, and passes on which units it kept in place of its input."""

        def forward(self, h: Tensor) -> Tensor:
            return F.dropout(torch.ones_like(h), 0.5) + 0 * h

    stack = Stack(lambda: nn.Sequential(nn.Linear(6, 8), Kept(), Kept(), Kept(), nn.Linear(8, 5)), (6,))
    engine = LayerParallel(stack.net(RULES["cdni"]()), F.cross_entropy, sgd)
    run(engine, [stack.batch(k) for k in range(6)])
    assert engine._below is not None
    kept = engine._below.rows.h[1:]
    assert {float(v) for v in kept.unique()} == {0.0, 2.0}
    assert not torch.equal(kept[0], kept[1])


# Numbers that are not finite


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_divergence_is_named_as_in_process(fused: bool | None, steps: int) -> None:
    net = DENSE.net(RULES["cdni"]())
    twin = copy.deepcopy(net)
    ours = LayerParallel(net, F.cross_entropy, sgd, fused=fused)
    theirs = InProcess(twin, F.cross_entropy, sgd, lags=ours.lags)
    found: list[tuple[str, int]] = []
    for engine in (ours, theirs):
        run(engine, [DENSE.batch(k) for k in range(steps)])
        x, y = DENSE.batch(steps)
        with pytest.raises(DivergedError) as caught:
            run(engine, [(x * float("inf"), y)] * 6)
        found.append((caught.value.where, caught.value.step))
    assert found[0] == found[1]


def test_a_loss_that_is_not_finite_is_called_so() -> None:
    net = DENSE.net(RULES["cdni"]())
    engine = LayerParallel(net, lambda o, y: F.cross_entropy(o, y) / 0, sgd)
    with pytest.raises(DivergedError, match="the loss was not finite at step 4"):
        run(engine, [DENSE.batch(k) for k in range(6)])


def test_no_guard_no_error() -> None:
    engine = LayerParallel(
        DENSE.net(RULES["cdni"]()), lambda o, y: F.cross_entropy(o, y) / 0, sgd, guard=False
    )
    records = run(engine, [DENSE.batch(k) for k in range(6)])
    assert not records[-1].loss.isfinite()
    engine.flush()


# Bad input


def dense(*widths: int, at: Any = None, rule: Rule | None = None) -> Any:
    blocks = [block(a, b) for a, b in zip((6, *widths), widths, strict=False)]
    model = nn.Sequential(*blocks, nn.Linear(widths[-1], CLASSES)).double()
    cuts = at or [str(k) for k in range(len(widths))]
    return sg.decouple(model, cuts, rule or RULES["cdni"](), DENSE.batch(0)[0])


def custom(*blocks: nn.Module) -> Any:
    model = nn.Sequential(nn.Linear(6, 8), *blocks, nn.Linear(8, CLASSES)).double()
    cuts = [str(k) for k in range(len(blocks) + 1)]
    return sg.decouple(model, cuts, RULES["cdni"](), DENSE.batch(0)[0])


class Scaled(nn.Module):
    def __init__(self, factor: float, *, as_tensor: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.factor: Any = torch.tensor(factor, dtype=torch.float64) if as_tensor else factor

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(h) * self.factor


class Deciding(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h if h.sum() > 0 else 2 * h


def norm(**options: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, **options), nn.ReLU())


def case_of(name: str) -> Any:
    case = CASES[name]
    return sg.decouple(case.model(), case.at, sg.NoBackprop(), case.batch()[0])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: dense(8, 8, 7, 7), "block '1' and block '2' cannot run as one batch: at '0', out_features 8 against 7"),
        (lambda: dense(8, 8, 9), r"block '1' and block '2'"),
        (lambda: dense(8, 9), r"interface '0' has shape \(B, 8\) and what crosses '1' \(B, 9\)"),
        (lambda: dense(8), "2 modules, expected at least 3"),
        (lambda: custom(norm(), nn.Sequential(nn.Linear(8, 8), nn.ReLU())), "block '1' and block '2'"),
        (lambda: custom(norm(), norm(momentum=0.2)), "at '1', momentum 0.1 against 0.2"),
        (lambda: custom(norm(), norm(affine=False)), "at '1', affine True against False"),
        (lambda: custom(Scaled(1.0), Scaled(2.0)), "factor 1.0 against 2.0"),
        (lambda: custom(Scaled(1.0, as_tensor=True), Scaled(2.0, as_tensor=True)), "tensor factor"),
        (
            lambda: custom(norm(momentum=None), norm(momentum=None)),
            "block '1': the buffers of its part '1' .* cannot be stacked",
        ),
        (
            lambda: custom(*(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8)) for _ in range(3))),
            "block '1' changes its input in place",
        ),
        (lambda: case_of("residual"), "interface 'stem' lies inside|'join_one' lies inside"),
        (lambda: case_of("two_headed"), "not a chain"),
        (
            lambda: dense(8, 8, 8, rule=rules.TrueGradient()),
            "rule at interface '0' has the module below wait",
        ),
        (
            lambda: sg.decouple(
                DENSE.make().double(),
                ["0", "1", "2", "3"],
                {str(k): sg.SyntheticGradient((5 + k,)) for k in range(4)},
                DENSE.batch(0)[0],
            ),
            "rule at interface '0' and rule at interface '1' .* hidden",
        ),
        (
            lambda: sg.decouple(
                DENSE.make().double(), ["0", "1", "2"], sg.NoBackprop(), DENSE.batch(0)[0],
                inputs=sg.rules.SyntheticInput(),
            ),
            "interface '0' has synthetic inputs",
        ),
    ],
)  # fmt: skip
def test_networks_that_cannot_be_trained_so(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        LayerParallel(make(), F.cross_entropy, sgd)


def test_hooks_that_would_not_run_are_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 8), *(norm() for _ in range(3)), nn.Linear(8, CLASSES)).double()
    model[1].register_forward_hook(lambda module, args, output: None)
    net = sg.decouple(model, ["0", "1", "2", "3"], RULES["cdni"](), DENSE.batch(0)[0])
    with pytest.raises(ConfigError, match="container '1' has forward hooks"):
        LayerParallel(net, F.cross_entropy, sgd)


def test_blocks_that_decide_by_numbers_are_refused_at_the_first_step() -> None:
    model = nn.Sequential(nn.Linear(6, 8), Deciding(), Deciding(), nn.Linear(8, CLASSES)).double()
    net = sg.decouple(model, ["0", "1", "2"], RULES["cdni"](), DENSE.batch(0)[0])
    engine = LayerParallel(net, F.cross_entropy, sgd)
    with pytest.raises(ConfigError, match="blocks '1' to '2' cannot run as one batch: .*control flow"):
        engine.step(*DENSE.batch(0))


@pytest.mark.parametrize("fused", [None, False])
def test_batches_that_do_not_fit(fused: bool | None) -> None:
    net = DENSE.net(RULES["cdni"]())
    engine = LayerParallel(net, F.cross_entropy, sgd, fused=fused)
    x, y = DENSE.batch(0)
    with pytest.raises(ContextError, match="got none"):
        engine.step(x, [1])
    for wrong in (y + CLASSES, y - CLASSES):
        with pytest.raises(ContextError, match="class index"):
            engine.step(x, wrong)
    with pytest.raises(ContextError, match="got a context of shape"):
        engine.step(x, y.unsqueeze(1).unsqueeze(1))
    twin = copy.deepcopy(net)
    reference = InProcess(twin, F.cross_entropy, sgd, lags=engine.lags)
    run(engine, [DENSE.batch(k) for k in range(6)])
    with pytest.raises(ShapeError, match=r"inputs of shape \(4, 6\), expected \(6, 6\)"):
        engine.step(*DENSE.batch(6, size=4))
    with pytest.raises(ContextError, match="class index"):
        engine.step(x, y + CLASSES)
    run(engine, [DENSE.batch(k) for k in range(6, 9)])  # what was refused has left nothing behind
    run(reference, [DENSE.batch(k) for k in range(9)])
    assert_same(net, twin)


def test_settings_that_cannot_be() -> None:
    net = DENSE.net(RULES["cdni"]())
    with pytest.raises(ConfigError, match="observe=-1"):
        LayerParallel(net, F.cross_entropy, sgd, observe=-1)
    with pytest.raises(ConfigError, match="got a Sequential"):
        LayerParallel([net.model], F.cross_entropy, sgd)  # type: ignore[list-item]
    several = LayerParallel([DENSE.net(RULES["cdni"](), k) for k in range(2)], F.cross_entropy, sgd)
    with pytest.raises(ShapeError, match=r"of shape \(6, 6\) for 2 networks"):
        several.step(*DENSE.batch(0))

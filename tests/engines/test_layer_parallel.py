"""The layer-parallel engine against the in-process engine with the same lags: per parameter, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad import rules
from synthgrad.core import Credit, Decoupled, Info, Message, Rule
from synthgrad.engines import InProcess, LayerParallel
from tests.networks import CLASSES, Local, block

STEPS = 14  # the first seven, at most, until every layer and every rule has learned


class Added(nn.Module):
    """A residual block: the skip connection lies within."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def residual() -> nn.Module:
    return Added(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)))


def image_block(a: int, b: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True))


def attention(*, norm_first: bool = True) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True, norm_first=norm_first)


class First(nn.Module):
    """Takes the first position of a sequence."""

    def forward(self, h: Tensor) -> Tensor:
        return h[:, 0]


@dataclass(frozen=True)
class Stack:
    """A network of equal blocks with a cut after all but the last module."""

    make: Callable[[], nn.Sequential]
    shape: tuple[int, ...]
    depth: int = 5

    def net(self, rule: Rule, seed: int = 1, **options: Any) -> Decoupled:
        torch.manual_seed(seed)
        model = self.make().double()
        net = sg.decouple(model, list(map(str, range(self.depth - 1))), rule, self.batch(0)[0], **options)
        for p in net.rules.parameters():  # a prediction of zero would hide what is made of it
            nn.init.normal_(p, std=0.2)
        return net

    def batch(self, seed: int, size: int = 6) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(size, *self.shape, generator=generator, dtype=torch.float64)
        return x, torch.randint(0, CLASSES, (size,), generator=generator)


STACKS = {
    "dense": Stack(
        lambda: nn.Sequential(block(6, 8), block(8, 8), block(8, 8), block(8, 8), nn.Linear(8, CLASSES)), (6,)
    ),
    "residual": Stack(
        lambda: nn.Sequential(nn.Linear(6, 8), residual(), residual(), residual(), nn.Linear(8, CLASSES)),
        (6,),
    ),
    "conv": Stack(
        lambda: nn.Sequential(
            image_block(2, 4),
            image_block(4, 4),
            image_block(4, 4),
            image_block(4, 4),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)),
        ),
        (2, 5, 5),
    ),
    "attention": Stack(
        lambda: nn.Sequential(
            nn.Linear(6, 8),
            attention(),
            attention(),
            attention(),
            nn.Sequential(First(), nn.Linear(8, CLASSES)),
        ),
        (4, 6),
    ),
    "alone": Stack(lambda: nn.Sequential(block(6, 8), block(8, 8), nn.Linear(8, CLASSES)), (6,), depth=3),
}
RULES: dict[str, Callable[[], Rule]] = {
    "dni": lambda: sg.SyntheticGradient(),
    "cdni": lambda: sg.SyntheticGradient(context=CLASSES),
    "cdni-table": lambda: sg.SyntheticGradient(context=CLASSES, learned_table=True),
    "cdni-hidden": lambda: sg.SyntheticGradient((7,), context=CLASSES),
    "no_bprop": rules.NoBackprop,
    "local_loss": lambda: rules.LocalLoss(CLASSES),
    "local_loss-hidden": lambda: rules.LocalLoss(CLASSES, rules.heads.linear_head((7,))),
    "sobolev": lambda: rules.Sobolev(CLASSES),
    "stale": lambda: rules.StaleGradient(24),
    "local": Local,
}


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 2e-3, momentum=0.9, weight_decay=1e-3)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-2)


def run(engine: Any, batches: Sequence[tuple[Tensor, Tensor]]) -> list[Any]:
    return [engine.step(x, y, ids=torch.arange(len(y)) + 6 * (k % 4)) for k, (x, y) in enumerate(batches)]


def assert_same(net: nn.Module, reference: nn.Module, atol: float = 1e-12) -> None:
    theirs = reference.state_dict()
    for name, value in net.state_dict().items():
        assert torch.allclose(value, theirs[name], rtol=0, atol=atol), f"'{name}' differs"


def compare(
    stack: Stack,
    rule: Rule,
    optimizer: Any = sgd,
    criterion: Any = F.cross_entropy,
    atol: float = 1e-12,
    steps: int = STEPS,
    options: dict[str, Any] | None = None,
    **own: Any,
) -> LayerParallel:
    """Train twins in both engines; compare records in every step, all parameters and buffers at the end."""
    net = stack.net(rule)
    twin, start = copy.deepcopy(net), copy.deepcopy(net)
    engine = LayerParallel(net, criterion, optimizer, **own, **(options or {}))
    reference = InProcess(twin, criterion, optimizer, lags=engine.lags, **(options or {}))
    batches = [stack.batch(k) for k in range(steps)]
    for ours, theirs in zip(run(engine, batches), run(reference, batches), strict=True):
        assert ours.updated == theirs.updated
        assert (ours.loss is None) == (theirs.loss is None)
        if ours.loss is not None:
            assert torch.allclose(ours.loss, theirs.loss, rtol=0, atol=1e-9)
    assert_same(net, twin, atol)
    with pytest.raises(AssertionError, match="differs"):
        assert_same(net, start)
    return engine


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("observe", [0, 2])
def test_equals_the_in_process_engine_with_every_rule(rule: str, observe: int) -> None:
    compare(STACKS["dense"], RULES[rule](), observe=observe)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("rule", ["cdni", "local_loss"])
def test_equals_it_with_blocks_of_every_kind(stack: str, rule: str) -> None:
    compare(STACKS[stack], RULES[rule](), observe=1)


def test_equals_it_with_maps_of_the_label() -> None:
    compare(STACKS["conv"], sg.SyntheticGradient((3,), context=CLASSES, kernel=1, maps=True))


@pytest.mark.parametrize("rule", ["dni", "cdni"])
@pytest.mark.parametrize("stack", ["dense", "alone"])
@pytest.mark.parametrize("fused", [True, False])
def test_equals_it_fused_and_not(rule: str, stack: str, fused: bool) -> None:
    engine = compare(STACKS[stack], RULES[rule](), fused=fused)
    assert type(engine._backend).__name__ == ("FusedBackend" if fused else "GeneralBackend")


@pytest.mark.parametrize("rule", ["cdni", "cdni-hidden", "local_loss"])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.Adam(p, 1e-2, fused=True),
        lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
        lambda p: torch.optim.Adam(p, 1e-2, foreach=True),
        lambda p: torch.optim.SGD(p, 0.05),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
        lambda p: torch.optim.RMSprop(p, 1e-3),
    ],
    ids=["adam", "adamw", "amsgrad", "foreach", "sgd", "nesterov", "rmsprop"],
)
def test_equals_it_under_every_optimizer(rule: str, optimizer: Any) -> None:
    # A bias in front of BatchNorm has a gradient of rounding errors only, which these optimizers divide by itself.
    compare(STACKS["dense"], RULES[rule](), optimizer, atol=1e-8)


def test_equals_it_with_a_rate_of_its_own_for_rules_and_losses_of_each_example() -> None:
    losses = nn.CrossEntropyLoss(reduction="none")
    compare(STACKS["dense"], RULES["sobolev"](), criterion=losses, options={"rule_options": {"lr": 0.2}})
    compare(STACKS["dense"], RULES["cdni"](), criterion=losses, options={"rule_options": {"lr": 0.2}})


@pytest.mark.parametrize("fused", [True, False])
def test_equals_it_with_a_summed_criterion(fused: bool) -> None:
    stack = STACKS["dense"]
    net = stack.net(RULES["cdni"](), reduction="sum")
    twin = copy.deepcopy(net)
    engine = LayerParallel(net, lambda o, y: F.cross_entropy(o, y, reduction="sum"), sgd, fused=fused)
    reference = InProcess(twin, engine._backend._top._criterion, sgd, lags=engine.lags)
    batches = [stack.batch(k) for k in range(STEPS)]
    run(engine, batches)
    run(reference, batches)
    assert_same(net, twin)


@pytest.mark.parametrize("fused", [True, False])
def test_equals_it_with_a_context_of_features(fused: bool) -> None:
    stack = STACKS["dense"]
    net = stack.net(RULES["cdni"]())
    twin = copy.deepcopy(net)
    engine = LayerParallel(net, F.cross_entropy, sgd, fused=fused, observe=1)
    reference = InProcess(twin, F.cross_entropy, sgd, lags=engine.lags)
    for k in range(STEPS):
        x, y = stack.batch(k)
        c = torch.randn(len(x), CLASSES, dtype=torch.float64)
        engine.step(x, y, context=c)
        reference.step(x, y, context=c)
    assert_same(net, twin)


def test_frozen_parameters_stay() -> None:
    stack = STACKS["dense"]
    net = stack.net(RULES["cdni"]())
    for k in range(5):
        net.model.get_submodule(str(k) if k == 4 else f"{k}.0").weight.requires_grad_(False)  # type: ignore[union-attr]
    twin = copy.deepcopy(net)
    engine = LayerParallel(net, F.cross_entropy, sgd)
    reference = InProcess(twin, F.cross_entropy, sgd, lags=engine.lags)
    batches = [stack.batch(k) for k in range(STEPS)]
    run(engine, batches)
    run(reference, batches)
    assert_same(net, twin)


def test_the_quality_of_credits_is_the_same() -> None:
    stack = STACKS["dense"]
    net = stack.net(RULES["cdni"]())
    twin = copy.deepcopy(net)
    monitors = [sg.Monitor(every=2) for _ in range(2)]
    engine = LayerParallel(net, F.cross_entropy, sgd, monitor=monitors[0], observe=1)
    reference = InProcess(twin, F.cross_entropy, sgd, lags=engine.lags, monitor=monitors[1])
    batches = [stack.batch(k) for k in range(STEPS)]
    run(engine, batches)
    run(reference, batches)
    ours, theirs = (monitor.collect() for monitor in monitors)
    assert list(ours) == ["0", "1", "2", "3"]
    for name, found in ours.items():
        assert found.cosine == pytest.approx(theirs[name].cosine, abs=1e-6)
        assert found.relative_error == pytest.approx(theirs[name].relative_error, abs=1e-5)


def test_rules_that_are_not_known_are_asked_in_turn() -> None:
    class Odd(sg.SyntheticGradient):
        """Learns from every other message only, and remembers in a buffer."""

        def build(self, site: Any) -> None:
            super().build(site)
            self.register_buffer("seen", torch.zeros(()))

        def credit(self, h: Tensor, info: Info) -> Credit:
            assert info.inputs is not None
            return super().credit(h + info.inputs.mean(), info)

        def observe(self, h: Tensor, info: Info, message: Message, pending: Any = ()) -> Any:
            self.seen += 1  # type: ignore[has-type]
            return super().observe(h, info, message, pending) if info.step and info.step % 2 else None

    for optimizer in (sgd, adam):
        compare(STACKS["dense"], Odd(context=CLASSES), optimizer, atol=1e-8, steps=20, observe=1)

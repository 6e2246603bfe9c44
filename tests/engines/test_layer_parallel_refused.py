"""What the layer-parallel engine takes as one batch, and what it must not: each named, none computed wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, Decoupled, ShapeError
from synthgrad.engines import InProcess, LayerParallel
from synthgrad.engines.layer_parallel.comparison import check_alike
from tests.engines.test_layer_parallel import RULES, STACKS, STEPS, Stack, assert_same, compare, run, sgd
from tests.networks import CLASSES, block

DENSE = STACKS["dense"]
Make = Callable[[int], nn.Module]


def stack_of(make: Make, count: int = 3) -> Stack:
    """Return a network with these blocks in the middle; each is made from its number."""
    return Stack(
        lambda: nn.Sequential(block(6, 8), *(make(k) for k in range(count)), nn.Linear(8, CLASSES)),
        (6,),
        count + 2,
    )


class Skip(nn.Sequential):
    """A residual block whose class is a sequence with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return x + super().forward(x)


class InPlace(nn.Module):
    """Changes what it has made itself, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, h: Tensor) -> Tensor:
        z = self.linear(h)
        z.add_(h)
        z *= 0.5
        return F.relu_(z)


class Counting(nn.Module):
    """Keeps a count and an average, in place, and computes with them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("average", torch.zeros(8))

    def forward(self, h: Tensor) -> Tensor:
        z = self.linear(h)
        if self.training:
            self.count += 1
            self.average.mul_(0.8).add_(z.detach().mean(0), alpha=0.2)
        return z / self.count - self.average


class Tied(nn.Module):
    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        if tied:
            self.b.weight = self.a.weight

    def forward(self, h: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(h)))


class Listed(nn.Module):
    """Holds functions, a dictionary, and its own parts once more, in a list that torch knows nothing of."""

    def __init__(self, *, bend: Any = None) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.again = [self.linear]
        self._bend = bend or (lambda h: torch.tanh(h))
        self.table = {"scale": 0.5, "of": ("a", partial(torch.mul, 2))}
        self.own = self.scaled

    def scaled(self, h: Tensor) -> Tensor:
        return self.table["of"][1](h) * self.table["scale"]  # type: ignore[operator,index]

    def forward(self, h: Tensor) -> Tensor:
        return self.own(self._bend(self.again[0](h)))


def hooked(*, identity: bool = False) -> nn.Module:
    parts = [nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Identity()]
    parts[3 if identity else 0].register_forward_hook(lambda module, args, output: 2 * output)
    return nn.Sequential(*parts)


class InputInPlace(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.add_(1)


class Reassigning(nn.Module):
    """Puts a new tensor in the place of its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(8))

    def forward(self, h: Tensor) -> Tensor:
        self.average = 0.9 * self.average + 0.1 * h.detach().mean(0)
        return h - self.average


class Attribute(nn.Module):
    """Computes with an attribute of any kind, whose name torch, and a reader, may overlook."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self._value = value
        self.linear = nn.Linear(8, 8)

    def forward(self, h: Tensor) -> Tensor:
        return self.linear(h)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(8, 8, batch_first=True)

    def forward(self, h: Tensor) -> Tensor:
        return self.cell(h.unsqueeze(1))[0][:, 0]


class Plain:
    """An object that knows no equality."""

    def __init__(self, value: Any) -> None:
        self.value = value


@pytest.mark.parametrize(
    "make",
    [
        lambda k: Skip(*block(8, 8)),
        lambda k: InPlace(),
        lambda k: nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Dropout(0.0, inplace=True)),
        lambda k: Counting(),
        lambda k: Tied(tied=True),
        lambda k: Listed(),
    ],
    ids=["skip", "in-place", "in-place modules", "buffers", "tied", "listed"],
)
def test_equals_the_in_process_engine_with_blocks_that_are_not_plain(make: Make) -> None:
    compare(stack_of(make), RULES["cdni"](), observe=1)
    compare(stack_of(make, 1), RULES["cdni"]())


@pytest.mark.parametrize("identity", [True, False])
def test_hooks_of_a_single_block_and_of_the_ends_run(identity: bool) -> None:
    compare(stack_of(lambda k: hooked(identity=identity), 1), RULES["cdni"]())
    ends = Stack(
        lambda: nn.Sequential(
            nn.Sequential(nn.Linear(6, 8), hooked(identity=identity)),
            block(8, 8),
            nn.Sequential(hooked(identity=identity), nn.Linear(8, CLASSES)),
        ),
        (6,),
        3,
    )
    compare(ends, RULES["cdni"]())


VALUES: dict[str, Callable[[int], Any]] = {
    "number": lambda k: float(k),
    "function": lambda k: (torch.tanh, torch.relu, torch.sigmoid)[k],
    "closure": lambda k: lambda h: h * k,
    "default": lambda k: lambda h, by=k: h * by,
    "partial": lambda k: partial(torch.mul, k),
    "list": lambda k: [1, k],
    "length": lambda k: [1] * k,
    "dict": lambda k: {"a": {"b": k}},
    "object": lambda k: Plain(k),
    "method": lambda k: Plain([k]).__init__,
    "kind": lambda k: (1, "1", None)[k],
    "generator": lambda k: torch.Generator().manual_seed(1),
    "tensors": lambda k: [torch.full((2,), k)],
    "module": lambda k: [nn.Linear(2, 2)],
}


@pytest.mark.parametrize("value", VALUES)
def test_blocks_that_differ_in_an_attribute_are_named(value: str) -> None:
    net = stack_of(lambda k: Attribute(VALUES[value](k))).net(RULES["cdni"]())
    with pytest.raises(ConfigError, match="block '1' and block '2' .* attribute _value is not the same"):
        LayerParallel(net, F.cross_entropy, sgd)


@pytest.mark.parametrize("value", sorted(set(VALUES) - {"generator", "module"}))
def test_blocks_with_equal_attributes_are_taken(value: str) -> None:
    net = stack_of(lambda k: Attribute(VALUES[value](1))).net(RULES["cdni"]())
    LayerParallel(net, F.cross_entropy, sgd)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda k: Tied(tied=k > 0), "block '1' and block '2' .* parameters that are tied"),
        (lambda k: hooked() if k == 1 else block(8, 8), "block '1' and block '2'"),
        (lambda k: hooked(), r"block '1': its part '0' \(Linear\) has hooks"),
        (lambda k: hooked(identity=True), r"block '1': its part '3' \(Identity\) has hooks"),
        (lambda k: InputInPlace(), "block '1' changes its input in place"),
        (lambda k: Recurrent(), r"block '1': .* its part '0.cell' \(GRU\) for many layers"),
    ],
)
def test_blocks_that_cannot_run_as_one_are_named(make: Make, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        LayerParallel(stack_of(make).net(RULES["cdni"]()), F.cross_entropy, sgd)


@pytest.mark.parametrize(("count", "name"), [(3, "blocks '1' to '3'"), (1, "block '1'")])
def test_buffers_that_cannot_be_stacked_are_named(count: int, name: str) -> None:
    stack = stack_of(lambda k: Reassigning(), count)
    engine = LayerParallel(stack.net(RULES["cdni"]()), F.cross_entropy, sgd)
    with pytest.raises(ConfigError, match=f"{name}: buffer '0.average' was given a new tensor"):
        engine.step(*stack.batch(0))


def test_blocks_on_two_devices_are_named() -> None:
    with pytest.raises(ConfigError, match=r"bias \(2,\) torch.float32 on cpu against .* on meta"):
        check_alike([nn.Linear(2, 2), nn.Linear(2, 2, device="meta")], ["a", "b"], "block")


# Several networks


def test_a_network_is_not_two() -> None:
    net = DENSE.net(RULES["cdni"]())
    with pytest.raises(ConfigError, match="parameter 'model.0.0.weight' is of network 0 and of network 1"):
        LayerParallel([net, net], F.cross_entropy, sgd)


def test_every_network_must_stay_where_it_is() -> None:
    nets = [DENSE.net(RULES["cdni"](), k) for k in range(2)]
    engine = LayerParallel(nets, F.cross_entropy, sgd)
    nets[0].float().double()
    with pytest.raises(ConfigError, match="have been moved"):
        engine.step(torch.zeros(2, 6, 6, dtype=torch.float64), torch.zeros(2, 6, dtype=torch.int64))


def test_targets_and_contexts_of_several_networks_are_tensors() -> None:
    engine = LayerParallel([DENSE.net(RULES["cdni"](), k) for k in range(2)], F.cross_entropy, sgd)
    x, y = torch.zeros(2, 6, 6, dtype=torch.float64), torch.zeros(2, 6, dtype=torch.int64)
    for target, form in (([y[0], y[1]], "list"), (y[0], r"shape \(6,\)"), (y[:1], r"shape \(1, 6\)")):
        with pytest.raises(ShapeError, match=f"got a target of {form} for 2 networks"):
            engine.step(x, target)
    with pytest.raises(ShapeError, match="got a context of shape"):
        engine.step(x, y, context=y[0])
    engine.step(x, y)


@pytest.mark.parametrize("fused", [None, False])
def test_a_criterion_that_decides_by_numbers(fused: bool | None) -> None:
    def criterion(scores: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(scores, y)
        return loss if loss.item() > 0 else 2 * loss

    nets = [DENSE.net(RULES["cdni"](), k) for k in range(2)]
    engine = LayerParallel(nets, criterion, sgd, fused=fused)
    x, y = (torch.stack(parts) for parts in zip(DENSE.batch(0), DENSE.batch(1), strict=True))
    with pytest.raises(ConfigError, match="criterion cannot run|the last modules cannot"):
        run(engine, [(x, y)] * 5)


def test_a_resumed_run_knows_the_size_of_its_batches() -> None:
    net = DENSE.net(RULES["dni"]())
    first = LayerParallel(net, F.mse_loss, sgd)
    x, y = DENSE.batch(0)
    target = F.one_hot(y, CLASSES).double()
    for _ in range(3):
        first.step(x, target)
    second = LayerParallel(DENSE.net(RULES["dni"]()), F.mse_loss, sgd)
    second.load_state_dict(first.state_dict())
    with pytest.raises(ShapeError, match=r"inputs of shape \(4, 6\), expected \(6, 6\)"):
        second.step(x[:4], target[:4])


# Precision


@pytest.mark.parametrize("name", ["dense", "residual", "attention"])
def test_the_general_step_computes_under_autocast_as_in_process(name: str) -> None:
    stack = STACKS[name]

    def train(engine: type, *, half: bool, **options: Any) -> Decoupled:
        # Means of classes, which follow every message at once, would carry the rounding of each step into the next.
        net = stack.net(RULES["cdni-table"]()).float()
        trainer = engine(net, F.cross_entropy, sgd, **options)
        for k in range(STEPS):
            x, y = stack.batch(k)
            with torch.autocast("cpu", torch.bfloat16, enabled=half, cache_enabled=False):
                trainer.step(x.float(), y)
        return net

    lags = {str(k): sg.engines.Lag(1) for k in range(stack.depth - 1)}
    reference = train(InProcess, half=True, lags=lags)
    ours, whole = (train(LayerParallel, half=half, fused=False) for half in (True, False))
    assert_same(ours, reference, atol=5e-3)
    with pytest.raises(AssertionError, match="differs"):
        assert_same(ours, whole, atol=1e-5)  # it is no float32 in disguise


def test_convolutions_refuse_autocast_where_it_would_not_reach_them() -> None:
    stack = STACKS["conv"]
    engine = LayerParallel(stack.net(RULES["cdni"]()), F.cross_entropy, sgd)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ConfigError, match="autocast has no effect"):
        engine.step(*stack.batch(0))
    reference = copy.deepcopy(engine.net)
    engine.step(*stack.batch(0))
    with pytest.raises(AssertionError, match="differs"):
        assert_same(engine.net, reference)

"""Numbers that are not finite: found before anything learns from them, named, and left out where that is wanted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, Decoupled, DivergedError, Guard, Info, Message, Site
from synthgrad.engines import Boundary, InProcess, Lag, LayerParallel, Locked, Recurrent
from synthgrad.rules import HandOver, LeastSquaresGradient, StaleGradient, TrueGradient

B, CLASSES = 8, 5


def model() -> nn.Module:
    torch.manual_seed(0)

    def block(a: int, b: int) -> nn.Module:
        return nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())

    return nn.Sequential(block(6, 8), block(8, 8), block(8, 8), nn.Linear(8, CLASSES)).double()


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (B,), generator=generator)


def network(rule: sg.Rule | None = None) -> Decoupled:
    rule = sg.SyntheticGradient(context=CLASSES) if rule is None else rule
    return sg.decouple(model(), ["0", "1", "2"], rule, batch()[0])


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in net.named_parameters()}


def bad() -> tuple[Tensor, Tensor]:
    x, y = batch(9)
    x[0, 0] = float("inf")
    return x, y


class Explodes(torch.autograd.Function):
    """Passes on; its gradient is not finite."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * float("nan")


class Exploding(nn.Module):
    """A layer whose backward pass overflows when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.on = nn.Linear(8, 8).double(), False

    def forward(self, h: Tensor) -> Tensor:
        return self.layer(Explodes.apply(h) if self.on else h)


ENGINES: dict[str, Callable[..., Any]] = {
    "in process": InProcess,
    "layer-parallel": LayerParallel,
    "layer-parallel, in general": lambda *args, **options: LayerParallel(*args, fused=False, **options),
    "plain": Locked,
}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_that_is_not_finite_ruins_no_module(engine: str) -> None:
    net = network()
    trainer = ENGINES[engine](net, F.cross_entropy, sgd)
    for k in range(6):
        trainer.step(*batch(k))
    before = weights(net)
    with pytest.raises(DivergedError, match="at step 6") as caught:
        trainer.step(*bad())
    for name, value in weights(net).items():
        if engine == "plain" or name.startswith(
            "model.0"
        ):  # above it others have learned from batches before
            assert torch.equal(value, before[name]), name
        assert value.isfinite().all(), name
    expected = ("loss", "loss") if engine == "plain" else ("0", "activation")
    assert (caught.value.where, caught.value.what) == expected


@pytest.mark.parametrize(
    ("make", "where", "what", "words"),
    [
        (lambda: network(Nonsense()), "0", "credit", "the credit at interface '0' was not finite at step 0"),
        (lambda: exploding("1"), "0", "message", "the message at interface '0' was not finite at step 0"),
        (lambda: exploding("0"), "0", "gradient", "the gradient of module '0' was not finite at step 0"),
    ],
    ids=["credit", "message", "gradient"],
)
def test_direction_and_interface_are_named_before_a_module_has_learned(
    make: Callable[[], Decoupled], where: str, what: str, words: str
) -> None:
    net = make()
    trainer = InProcess(net, F.cross_entropy, sgd)
    before = weights(net)
    with pytest.raises(DivergedError, match=words) as caught:
        trainer.step(*batch())
    assert (caught.value.where, caught.value.what) == (where, what)
    for name, value in weights(net).items():
        assert torch.equal(value, before[name]) or not name.startswith(
            f"model.{'1' if what == 'message' else '0'}"
        ), name
        assert value.isfinite().all(), name


class Nonsense(sg.Rule):
    """Gives credit that is not finite."""

    listens = False

    def credit(self, h: Tensor, info: Info) -> sg.core.Credit:
        return sg.core.Credit(torch.full_like(h, float("nan")).detach())


def exploding(at: str) -> Decoupled:
    torch.manual_seed(0)
    low = nn.Sequential(nn.Linear(6, 8).double(), Exploding(), nn.Tanh())
    top = nn.Sequential(Exploding(), nn.Tanh())
    plain = nn.Sequential(low, top, nn.Linear(8, CLASSES).double())
    net = sg.decouple(plain, ["0", "1"], sg.Sobolev(CLASSES), batch()[0])
    found: Any = net.model
    (found[0][1] if at == "0" else found[1][0]).on = True
    # So that modules learn something in the first step.
    for interface in net.interfaces.values():
        for p in interface.rule.parameters():
            nn.init.normal_(p)
    return net


def test_a_sum_that_overflows_is_no_alarm() -> None:
    guard = Guard()
    large = torch.full((100,), 6e4, dtype=torch.float16)
    assert not large.sum().isfinite()
    assert guard.check("cut", 0, large)
    assert guard.check_crossing("cut", 0, torch.full((4,), 3e38), torch.full((4,), 3e38))
    with pytest.raises(DivergedError, match="activation at interface 'cut'"):
        guard.check_crossing("cut", 0, torch.tensor([float("inf")]), torch.zeros(1))
    with pytest.raises(DivergedError, match="credit at interface 'cut'"):
        guard.check_crossing("cut", 0, torch.zeros(1), torch.tensor([float("nan")]))


# -- a guard that goes on ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [InProcess, Locked])
@pytest.mark.parametrize(
    "rule",
    [
        lambda: sg.SyntheticGradient(context=CLASSES),
        lambda: StaleGradient(B),
        lambda: LeastSquaresGradient(CLASSES),
        lambda: HandOver(sg.SyntheticGradient(context=CLASSES), warm_up=3, min_cosine=0.0),
        TrueGradient,
        lambda: sg.LocalLoss(CLASSES),
    ],
    ids=["synthetic", "stale", "least squares", "hand-over", "true", "local"],
)
def test_a_step_that_is_left_out_leaves_everything_as_it_was(rule: Any, engine: Any) -> None:
    """A run with a bad batch in the midst ends as the same run without it, by step numbers aside."""
    nets = [network(rule()) for _ in range(2)]
    guard = Guard(skip=True)
    trainers = [engine(net, F.cross_entropy, sgd, guard=guard) for net in nets]
    ids = torch.arange(B)
    for k in range(3):
        for trainer in trainers:
            trainer.step(*batch(k), ids=ids)
    record = trainers[0].step(*bad(), ids=ids)
    assert record.updated == []
    assert guard.skipped["loss"] == 1
    if isinstance(rule(), HandOver | StaleGradient):
        for interface in nets[1].interfaces.values():  # these count steps
            if isinstance(interface.rule, HandOver):
                interface.rule.batches += 1
                interface.rule._count = None
        trainers[1]._step += 1
    for k in range(3, 6):
        for trainer in trainers:
            trainer.step(*batch(k), ids=ids)
    theirs = nets[1].state_dict()
    for name, value in nets[0].state_dict().items():
        if name.endswith(("num_batches_tracked", "written")):
            continue
        torch.testing.assert_close(value, theirs[name], rtol=1e-12, atol=1e-12, msg=name)


def test_messages_that_come_late_are_left_out_too() -> None:
    net = network()
    guard = Guard(skip=True)
    trainer = InProcess(net, F.cross_entropy, sgd, guard=guard, lags=dict.fromkeys(net.interfaces, Lag(1, 2)))
    for k in range(12):
        trainer.step(*(bad() if k == 4 else batch(k)))
    assert guard.skipped.total() > 0
    assert all(t.isfinite().all() for t in net.state_dict().values())


@pytest.mark.parametrize("engine", ["layer-parallel", "recurrent"])
def test_engines_that_cannot_leave_a_step_out_say_so(engine: str) -> None:
    cell: Any = nn.Module()
    boundary = Boundary(sg.NoBackprop(), torch.zeros(2, 3))
    make: dict[str, Callable[[], object]] = {
        "layer-parallel": lambda: LayerParallel(network(), F.cross_entropy, sgd, guard=Guard(skip=True)),
        "recurrent": lambda: Recurrent(cell, boundary, F.mse_loss, sgd, guard=Guard(skip=True)),
    }
    with pytest.raises(ConfigError, match="cannot go on without a step that is not finite"):
        make[engine]()


def test_a_guard_is_a_guard() -> None:
    with pytest.raises(ConfigError, match="guard='skip': expected True, False, or a Guard"):
        InProcess(network(), F.cross_entropy, sgd, guard="skip")  # type: ignore[arg-type]


# -- rules are never poisoned -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        lambda: StaleGradient(B),
        lambda: LeastSquaresGradient(),
        lambda: HandOver(sg.SyntheticGradient(), min_cosine=0.1),
        lambda: sg.SyntheticGradient((6,)),
    ],
    ids=["stale", "least squares", "hand-over", "synthetic"],
)
@pytest.mark.parametrize("way", ["scaled loop", "no guard"])
def test_one_overflow_poisons_no_rule(rule: Any, way: str) -> None:
    scale = [1.0]
    x, y = batch()
    net = sg.decouple(
        model(), ["0", "1", "2"], rule(), x, loss_scale=(lambda: scale[0]) if way == "scaled loop" else None
    )
    ids = torch.arange(B)
    if way == "no guard":
        trainer = InProcess(net, poisoned, sgd, guard=False)
        for k in range(3):
            trainer.step(*batch(k), ids=ids)
        rules = {name: t for name, t in net.state_dict().items() if name.startswith("rules.")}
    else:
        for k in range(3):
            x, y = batch(k)
            scale[0] = float("inf") if k == 1 else 2.0
            with sg.context(y, ids=ids, step=k):
                (F.cross_entropy(net(x), y) * scale[0]).backward()
            if k == 1:  # as a gradient scaler does: no update
                net.zero_grad()
        rules = {name: t for name, t in net.state_dict().items() if name.startswith("rules.")}
        rules |= {
            f"gradient of {n}": p.grad
            for n, p in net.named_parameters()
            if n.startswith("rules") and p.grad is not None
        }
    assert rules
    for name, value in rules.items():
        assert value.isfinite().all(), name


def poisoned(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output * float("inf"), y)


def test_a_cosine_that_is_no_number_is_no_trust() -> None:
    rule: Any = HandOver(sg.SyntheticGradient(), min_cosine=0.1).bind(
        Site("cut", (4, 3), torch.float64, torch.device("cpu"), nn.Identity())
    )
    h = torch.randn(4, 3, dtype=torch.float64)
    rule.cosine.fill_(float("nan"))
    assert rule.credit(h, Info()).wait
    rule.cosine.fill_(0.5)
    rule.observe(h, Info(), Message(torch.full((4, 3), float("nan"), dtype=torch.float64)))
    assert rule.cosine.item() == 0.5
    assert not rule.credit(h, Info()).wait


def test_least_squares_learn_under_autocast() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    x, y = batch()
    nets = [sg.decouple(plain, ["1"], LeastSquaresGradient(CLASSES), x.float()) for _ in range(2)]
    twin = copy.deepcopy(nets[0])
    with torch.autocast("cpu", torch.bfloat16):
        trainer = InProcess(nets[0], F.cross_entropy, sgd)
        for k in range(4):
            trainer.step(batch(k)[0].float(), batch(k)[1])
    reference = InProcess(twin, F.cross_entropy, sgd)
    for k in range(4):
        reference.step(batch(k)[0].float(), batch(k)[1])
    ours: Any = nets[0].interfaces["1"].rule
    theirs: Any = twin.interfaces["1"].rule
    assert ours.weight.abs().max() > 0
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0.2, atol=0.05)

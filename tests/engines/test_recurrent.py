"""The loop around the boundary: windows, λ-returns, fresh sequences, resuming."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, Credit, DivergedError, Info, Message, Monitor, Rule, ShapeError
from synthgrad.engines import Boundary, Recurrent
from synthgrad.engines.recurrent import RecurrentNetwork
from synthgrad.rules import FutureGradient, LeastSquaresGradient

B, T, H, CLASSES = 4, 3, 5, 3


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core = nn.LSTM(2, H, batch_first=True)
        self.head = nn.Linear(H, CLASSES)

    def initial_state(self, batch_size: int, device: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        zero = torch.zeros(1, batch_size, H, device=device, dtype=dtype)
        return zero, zero

    def features(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.core(x, state)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        features, state = self.features(x, state)
        return self.head(features), state


def criterion(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="sum") / len(y)


def unrolls(num: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(B, T, 2, dtype=torch.float64), torch.randint(CLASSES, (B, T))) for _ in range(num)]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def build(
    rule: Rule | None = None, future: FutureGradient | None = None, **options: Any
) -> tuple[Network, Boundary, Recurrent]:
    torch.manual_seed(0)
    net = Network().double()
    alpha = options.pop("alpha", 0.5)
    state = net.initial_state(B, None, torch.float64)
    boundary = Boundary(
        rule or sg.SyntheticGradient((4,), norm=False), state, batch_dim=1, alpha=alpha, future=future
    )
    for p in boundary.parameters():
        nn.init.normal_(p, std=0.3)
    return net, boundary, Recurrent(net, boundary, criterion, options.pop("optimizer", sgd), **options)


def grads(*modules: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for m in modules for p in m.parameters() if p.grad is not None]


def test_the_network_of_the_protocol() -> None:
    network: RecurrentNetwork = Network()
    assert network is not None


def test_a_step_is_the_loop_of_two_calls() -> None:
    net, boundary, trainer = build()
    other, same, _ = build()
    optimizer = sgd([*other.parameters(), *same.parameters()])
    state = other.initial_state(B, None, torch.float64)
    for k, (x, y) in enumerate(unrolls(4)):
        record = trainer.step(x, y)
        scores, state = other(x, same.start(state, fresh=k == 0))
        loss = same.end(criterion(scores, y), state)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(record.loss, loss.detach())
        assert record.updated == ["all"]
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name, rtol=1e-10, atol=1e-12)
    for (name, p), q in zip(boundary.named_parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name, rtol=1e-10, atol=1e-12)


def last_grads(mix: float, window: int, alpha: float, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of network and rule after one window that begins with a state that goes on."""
    net, boundary, trainer = build(
        window=window, mix=mix, alpha=alpha, optimizer=lambda p: torch.optim.SGD(p, 0.0)
    )
    torch.manual_seed(2)
    trainer.state = tuple(torch.randn(1, B, H, dtype=torch.float64) for _ in range(2))
    for k, (x, y) in enumerate(unrolls(window)):
        trainer.step(x, y, **{key: value[k] for key, value in options.items()})
    return grads(net), grads(boundary)


def test_windows_without_mixing_add_up_single_unrolls() -> None:
    net, boundary, trainer = build(optimizer=lambda p: torch.optim.SGD(p, 0.0))
    torch.manual_seed(2)
    trainer.state = tuple(torch.randn(1, B, H, dtype=torch.float64) for _ in range(2))
    total: list[Tensor] = []
    for x, y in unrolls(3):
        trainer.step(x, y)
        found = grads(net, boundary)
        total = [a + b for a, b in zip(total, found, strict=True)] if total else found
    whole = last_grads(0.0, 3, 0.5)
    for a, b in zip([*whole[0], *whole[1]], total, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mix", [0.3, 1.0])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_returns_are_those_written_out(mix: float, alpha: float) -> None:
    """G_k = ∂L_k/∂s_k + J_kᵀ α [(1 − λ) δ̂_{k+1} + λ G_{k+1}], by autograd over explicit unrolls."""
    found = last_grads(mix, 3, alpha)[1]
    net, boundary, _ = build()
    torch.manual_seed(2)
    state = tuple(torch.randn(1, B, H, dtype=torch.float64) for _ in range(2))
    layout, model = boundary.layout, boundary.rule.model
    starts, ends, losses = [], [], []
    flat = layout.pack(state)
    for x, y in unrolls(3):
        starts.append(flat.detach().requires_grad_())
        scores, state = net(x, layout.unpack(starts[-1]))
        flat = layout.pack(state)
        ends.append(flat)
        losses.append(criterion(scores, y))
    later = model(ends[2].detach()).detach()
    error: Any = 0.0
    for k in (2, 1, 0):
        own = model(ends[k].detach()).detach()
        seed = alpha * (own if k == 2 else (1 - mix) * own + mix * later)
        (back,) = torch.autograd.grad([losses[k], ends[k]], starts[k], [torch.ones(()).double(), seed / B])
        later = back * B
        error = error + (model(starts[k].detach()) - later).square().sum() / B
    boundary.zero_grad()
    error.backward()
    for a, b in zip(found, grads(boundary), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_full_mixing_is_backpropagation_through_the_window() -> None:
    """λ = 1, α = 1: the rule learns at the first start what full BPTT brings back there."""
    net, boundary, trainer = build(window=3, mix=1.0, alpha=1.0, optimizer=lambda p: torch.optim.SGD(p, 0.0))
    torch.manual_seed(2)
    state: Any = tuple(torch.randn(1, B, H, dtype=torch.float64) for _ in range(2))
    trainer.state = state
    heard: list[Tensor] = []
    boundary.observe = lambda opened, gradient: heard.append(gradient)  # type: ignore[method-assign]
    for x, y in unrolls(3):
        trainer.step(x, y)
    start = boundary.layout.pack(state).requires_grad_()
    state, total = boundary.layout.unpack(start), torch.zeros(()).double()
    for x, y in unrolls(3):
        scores, state = net(x, state)
        total = total + criterion(scores, y)
    last = boundary.layout.pack(state)
    injected = boundary.rule.model(last.detach()).detach() / B
    (expected,) = torch.autograd.grad([total, last], start, [torch.ones(()).double(), injected])
    torch.testing.assert_close(heard[-1], expected * B, rtol=1e-9, atol=1e-12)


def test_returns_do_not_cross_the_end_of_an_episode() -> None:
    ended = [torch.tensor([True, False, False, True]), False, False]
    fresh = [False, torch.tensor([True, False, False, True]), False]
    found = last_grads(1.0, 3, 1.0, ended=ended, fresh=fresh)[1]
    # The same, sequence by sequence: those that end are a window of one and one of two.
    net, boundary, _ = build()
    layout, model = boundary.layout, boundary.rule.model
    torch.manual_seed(2)
    state: Any = layout.pack(tuple(torch.randn(1, B, H, dtype=torch.float64) for _ in range(2)))
    cut = torch.tensor([True, False, False, True])[:, None]
    (x0, y0), (x1, y1), (x2, y2) = unrolls(3)
    s0 = state.detach().requires_grad_()
    scores, state = net(x0, layout.unpack(s0))
    l0, flat = criterion(scores, y0), layout.pack(state)
    s1 = torch.where(cut, 0, flat)
    s1.retain_grad()
    scores, state = net(x1, layout.unpack(s1))
    l1, s2 = criterion(scores, y1), layout.pack(state)
    s2.retain_grad()
    scores, state = net(x2, layout.unpack(s2))
    l2, s3 = criterion(scores, y2), layout.pack(state)
    torch.autograd.backward([l0 + l1 + l2, s3], [None, model(s3.detach()).detach() / B])
    error = (model(s0.detach()) - s0.grad * B).square().sum() / B
    error = error + (model(s2.detach()) - s2.grad * B).square().sum() / B
    keep = ~cut.squeeze(1)
    error = error + (model(s1.detach()[keep]) - s1.grad[keep] * B).square().sum() / keep.sum()
    boundary.zero_grad()
    error.backward()
    for a, b in zip(found, grads(boundary), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_window_that_is_not_full_is_closed_at_the_end() -> None:
    net, _, trainer = build(window=3)
    before = copy.deepcopy(net.state_dict())
    (x, y), *_ = unrolls(1)
    assert trainer.step(x, y).updated == []
    with pytest.raises(ConfigError, match="is not full, and its graphs cannot be saved; call flush"):
        trainer.state_dict()
    trainer.flush()
    assert any(not torch.equal(v, before[k]) for k, v in net.state_dict().items())
    trainer.state_dict()


def test_fresh_sequences_begin_with_the_initial_state() -> None:
    _, _, trainer = build(optimizer=lambda p: torch.optim.SGD(p, 0.0))
    (x, y), (x1, y1) = unrolls(2)
    trainer.step(x, y)
    trainer.step(x1, y1, fresh=torch.tensor([True, False, True, False]))
    mixed = trainer.boundary.layout.pack(trainer.state)
    _, _, anew = build(optimizer=lambda p: torch.optim.SGD(p, 0.0))
    anew.step(x1, y1)
    fresh = anew.boundary.layout.pack(anew.state)
    torch.testing.assert_close(mixed[::2], fresh[::2])
    assert not torch.allclose(mixed[1::2], fresh[1::2])
    trainer.step(x1, y1, fresh=True)
    torch.testing.assert_close(trainer.boundary.layout.pack(trainer.state), fresh)


@pytest.mark.parametrize(
    "rule", [None, sg.NoBackprop(), sg.SyntheticGradient((4,), norm=False, context=CLASSES)]
)
def test_resume_continues_as_if_nothing_had_happened(rule: Rule | None) -> None:
    adam = lambda p: torch.optim.Adam(p, 1e-2)  # noqa: E731
    context = torch.zeros(B, dtype=torch.int64)

    def make() -> tuple[Network, Boundary, Recurrent]:
        return build(rule, FutureGradient(H, 2 * H), optimizer=adam)

    net, boundary, trainer = make()
    data = unrolls(6)
    for x, y in data[:3]:
        trainer.step(x, y, context=context)
    buffer = io.BytesIO()
    torch.save((net.state_dict(), boundary.state_dict(), trainer.state_dict()), buffer)
    buffer.seek(0)
    for x, y in data[3:]:
        trainer.step(x, y, context=context)
    other, same, second = make()
    saved = torch.load(buffer, weights_only=True)
    for part, state in zip((other, same, second), saved, strict=True):
        part.load_state_dict(state)
    for x, y in data[3:]:
        second.step(x, y, context=context)
    for (name, p), q in zip(net.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(p, q[1]), name
    for (name, p), q in zip(boundary.named_parameters(), same.named_parameters(), strict=True):
        assert torch.equal(p, q[1]), name


def _asked(scores: Tensor, sign: Tensor | None) -> Tensor:
    return scores.sum() * 0 if sign is None else F.cross_entropy(scores[:, -1], sign)


def _error_of_a_sign(rule: Rule, context: bool = False) -> float:
    torch.manual_seed(0)
    net = Network()
    with torch.no_grad():
        net.core.bias_hh_l0[H : 2 * H] = -3.0  # forget gates
    state = net.initial_state(32, None, torch.float32)
    boundary = Boundary(rule, state, batch_dim=1, alpha=1.0)
    trainer = Recurrent(net, boundary, _asked, lambda p: torch.optim.Adam(p, 3e-3))
    found: list[float] = []
    told = torch.zeros(32, dtype=torch.int64) if context else None
    for _ in range(500):
        sign = torch.randint(2, (32,))
        x = torch.zeros(32, 6, 2)
        x[:, 0, 0], x[:, :, 1] = 2.0 * sign - 1, torch.randn(32, 6)
        trainer.step(x[:, :3], None, fresh=True, context=told)
        found.append(trainer.step(x[:, 3:], sign, ended=True, context=told).loss.item())
    return sum(found[-50:]) / 50


class Told(sg.SyntheticGradient):
    """Notes what it is told of a state, asked for its credit and told what came back."""

    def __init__(self) -> None:
        super().__init__(context=CLASSES)
        self.asked: list[int] = []
        self.taught: list[int] = []

    def credit(self, h: Tensor, info: Info) -> Credit:
        assert info.context is not None
        self.asked.append(int(info.context[0]))
        return super().credit(h, info)

    def observe(self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()) -> Tensor:
        assert info.context is not None
        self.taught.append(int(info.context[0]))
        return super().observe(h, info, message, pending)

    def observe_grad(self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...]) -> Any:
        return None  # ask `observe`


@pytest.mark.parametrize("window", [1, 3])
def test_of_a_state_the_rule_is_told_the_same_at_both_ends(window: int) -> None:
    """As the end of an unroll and as the start of the next, also where the run was saved in between."""
    _, boundary, trainer = build(Told(), window=window)
    for k, (x, y) in enumerate(unrolls(3)):
        trainer.step(x, y, context=torch.full((B,), k))
    kept = trainer.state_dict()
    _, _, second = build(Told(), window=window)
    second.load_state_dict(kept)
    rule: Any = boundary.rule
    again: Any = second.boundary.rule
    assert sorted(set(rule.taught)) == [0, 1]  # the last one's end is not a start yet
    for x, y in unrolls(window):
        second.step(x, y, context=torch.zeros(B, dtype=torch.int64))
    assert 2 in again.taught


def test_clipping_is_of_the_network_alone() -> None:
    (net, boundary, trainer), (other, same, _) = build(max_norm=0.05), build()
    optimizer = sgd([*other.parameters(), *same.parameters()])
    state = other.initial_state(B, None, torch.float64)
    for k, (x, y) in enumerate(unrolls(3)):
        trainer.step(x, y)
        scores, state = other(x, same.start(state, fresh=k == 0))
        optimizer.zero_grad()
        same.end(criterion(scores, y), state).backward()
        norm = nn.utils.clip_grad_norm_(other.parameters(), 0.05)
        assert norm > 0.05
        optimizer.step()
    for a, b in ((net, other), (boundary, same)):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
    with pytest.raises(ConfigError, match="expected a norm above 0"):
        build(max_norm=0.0)


@pytest.mark.slow(reason="trains until it has learned")
def test_least_squares_learn_further_than_an_unroll_too() -> None:
    assert _error_of_a_sign(LeastSquaresGradient(2), context=True) < 0.1
    assert _error_of_a_sign(LeastSquaresGradient(), context=False) < 0.2


@pytest.mark.slow(reason="trains until it has learned")
def test_it_learns_further_than_its_unroll() -> None:
    """A sign that is shown at the first step is asked for at the sixth: out of reach of unrolls of three.

    The network begins forgetful: what it has to learn, to keep the sign, only credit from beyond can teach.
    """
    assert _error_of_a_sign(sg.NoBackprop()) > 0.6  # chance is 0.69
    assert _error_of_a_sign(sg.SyntheticGradient((16,), norm=False)) < 0.1


def test_the_monitor_measures_in_windows_too() -> None:
    for options in ({}, {"window": 2, "mix": 0.5}):
        _, boundary, trainer = build(**options)
        boundary.monitor = Monitor(every=1)
        for x, y in unrolls(4):
            trainer.step(x, y)
        assert boundary.monitor.collect().keys() == {"state"}


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    _, _, trainer = build()
    (x, y), *_ = unrolls(1)
    with pytest.raises(DivergedError):
        trainer.step(x * float("nan"), y)


class Wrong(Network):
    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        scores, state = super().forward(x, state)
        return scores, state[0]


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(ConfigError, match="window=0"):
        build(window=0)
    with pytest.raises(ConfigError, match="mix=2"):
        build(mix=2, window=2)
    with pytest.raises(ConfigError, match="no effect with window=1"):
        build(mix=0.5)
    net, boundary, trainer = build()
    (x, y), (x1, y1) = unrolls(2)
    trainer.step(x, y)
    with pytest.raises(ShapeError, match=r"fresh has shape \(2,\), expected \(4,\)"):
        trainer.step(x1, y1, fresh=torch.tensor([True, False]))
    wrong = Recurrent(Wrong().double(), boundary, criterion, sgd)
    with pytest.raises(ShapeError, match=r"end of an unroll has the structure \*, expected \(\*, \*\)"):
        wrong.step(x, y)
    plain = nn.LSTM(2, H)
    future = Boundary(
        sg.NoBackprop(),
        net.initial_state(B, None, torch.float64),
        batch_dim=1,
        future=FutureGradient(H, 2 * H),
    )
    with pytest.raises(ConfigError, match="LSTM has no method features"):
        Recurrent(plain, future, criterion, sgd)
    sparse = Boundary(
        sg.NoBackprop(), net.initial_state(B, None, torch.float64), batch_dim=1, observe_every=2
    )
    with pytest.raises(ConfigError, match="window=2 and a boundary with observe_every=2"):
        Recurrent(net, sparse, criterion, sgd, window=2)
    scaled = Boundary(
        sg.NoBackprop(), net.initial_state(B, None, torch.float64), batch_dim=1, loss_scale=lambda: 2.0
    )
    with pytest.raises(ConfigError, match="built with loss_scale"):
        Recurrent(net, scaled, criterion, sgd)

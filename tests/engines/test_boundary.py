"""The boundary between unrolls: exact where the future is known, and honest about where episodes end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, Credit, Info, Message, Monitor, Rule, ShapeError
from synthgrad.engines import Boundary
from synthgrad.rules import FutureGradient, Oracle, Recording

B, T, UNROLLS, H, CLASSES = 5, 3, 4, 6, 3


class Cell(nn.Module):
    """A user's own recurrent module: a cell in a loop, its state in a dictionary, batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, H)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h, out = state["h"], []
        for now in x:
            h = self.cell(now, h)
            out.append(h)
        return torch.stack(out), {"h": h}


def zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)


CORES: dict[str, tuple[Any, Any, int]] = {
    "lstm": (lambda: nn.LSTM(4, H), (zeros(1, B, H), zeros(1, B, H)), 1),
    "two_layers": (lambda: nn.LSTM(4, H, num_layers=2), (zeros(2, B, H), zeros(2, B, H)), 1),
    "gru": (lambda: nn.GRU(4, H), zeros(1, B, H), 1),
    "cell": (Cell, {"h": zeros(B, H)}, 0),
}
every_core = pytest.mark.parametrize("core", CORES)


def network(core: str) -> tuple[nn.ModuleDict, Any, int]:
    torch.manual_seed(0)
    make, state, batch_dim = CORES[core]
    return nn.ModuleDict({"core": make(), "head": nn.Linear(H, CLASSES)}).double(), state, batch_dim


def episode() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(UNROLLS, T, B, 4, dtype=torch.float64), torch.randint(CLASSES, (UNROLLS, T, B))


def loss_of(net: nn.ModuleDict, features: Tensor, y: Tensor) -> Tensor:
    """Sum over steps, mean over sequences."""
    scores = net["head"](features).flatten(0, 1)
    return F.cross_entropy(scores, y.flatten(), reduction="sum") / y.shape[1]


def grads(net: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def full_bptt(core: str) -> tuple[dict[str, Tensor], Recording]:
    """Backpropagate through a whole episode; return gradients and the true messages at every boundary."""
    net, state, batch_dim = network(core)
    layout = sg.core.StateLayout(state, batch_dim)
    x, y = episode()
    total, flats = zeros(()), []
    for now, target in zip(x, y, strict=True):
        flat = layout.pack(state)
        if flats or flat.requires_grad:
            flat.retain_grad()
        flats.append(flat)
        features, state = net["core"](now, layout.unpack(flat))
        total = total + loss_of(net, features, target)
    total.backward()
    messages = {("state", k - 1): f.grad * B for k, f in enumerate(flats) if k and f.grad is not None}
    messages["state", UNROLLS - 1] = torch.zeros_like(flats[-1])
    return grads(net), Recording(messages)


@every_core
def test_with_the_exact_future_gradient_truncated_bptt_is_full_bptt(core: str) -> None:
    expected, recording = full_bptt(core)
    net, state, batch_dim = network(core)
    boundary = Boundary(Oracle(recording), state, batch_dim=batch_dim, alpha=1.0)
    for k, (x, y) in enumerate(zip(*episode(), strict=True)):
        state = boundary.start(state, fresh=k == 0)
        features, state = net["core"](x, state)
        boundary.end(loss_of(net, features, y), state, ended=k == UNROLLS - 1).backward()
    found = grads(net)
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)


@every_core
def test_without_credit_it_is_the_ordinary_truncated_loop(core: str) -> None:
    ours, state, batch_dim = network(core)
    boundary = Boundary(sg.NoBackprop(), state, batch_dim=batch_dim)
    theirs, other, _ = network(core)
    for k, (x, y) in enumerate(zip(*episode(), strict=True)):
        state = boundary.start(state, fresh=k == 0)
        features, state = ours["core"](x, state)
        boundary.end(loss_of(ours, features, y), state).backward()
        other = torch.utils._pytree.tree_map(lambda part: part.detach(), other)
        features, other = theirs["core"](x, other)
        loss_of(theirs, features, y).backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_one_unroll_equals_the_same_written_by_hand() -> None:
    net, state, batch_dim = network("lstm")
    boundary = Boundary(sg.SyntheticGradient((7,), norm=False), state, batch_dim=batch_dim, alpha=0.3)
    for p in boundary.parameters():
        nn.init.normal_(p, std=0.3)
    x, y = (part[0] for part in episode())
    h, c = torch.randn(B, H, dtype=torch.float64), torch.randn(B, H, dtype=torch.float64)
    model = boundary.rule.model

    features, (h1, c1) = net["core"](x, boundary.start((h[None], c[None])))
    boundary.end(loss_of(net, features, y), (h1, c1)).backward()
    found = grads(net) | {f"rule.{n}": g for n, g in grads(model).items()}

    net.zero_grad(), model.zero_grad()
    start = torch.cat([h, c], 1).requires_grad_()
    features, (h1, c1) = net["core"](x, (start[None, :, :H].contiguous(), start[None, :, H:].contiguous()))
    last = torch.cat([h1[0], c1[0]], 1)
    injected = 0.3 * model(last.detach()).detach() / B
    torch.autograd.backward([loss_of(net, features, y), last], [None, injected])
    (model(start.detach()) - start.grad * B).square().sum().div(B).backward()
    for name, value in (grads(net) | {f"rule.{n}": g for n, g in grads(model).items()}).items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12, msg=name)


class Linear(nn.Module):
    """``s' = A s`` and, at every step, the loss ``½ ‖s'‖²``: the value's gradient is ``P s`` in closed form."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        a = torch.randn(4, 4, dtype=torch.float64)
        self.register_buffer("a", 0.7 * a / torch.linalg.matrix_norm(a, 2))
        self.offset = nn.Parameter(zeros(4))  # something that gradients reach

    def forward(self, s: Tensor) -> tuple[Tensor, Tensor]:
        loss = zeros(())
        for _ in range(T):
            s = s @ self.a.t() + self.offset
            loss = loss + 0.5 * s.square().sum()
        return loss / len(s), s

    def value(self) -> Tensor:
        """P with V(s) = ½ sᵀ P s: P = Aᵀ (I + P) A."""
        eye = torch.eye(16, dtype=torch.float64)
        right = (self.a.t() @ self.a).flatten()
        return torch.linalg.solve(eye - torch.kron(self.a.t(), self.a.t()), right).view(4, 4)


def test_the_true_value_gradient_is_a_fixed_point_of_bootstrapping() -> None:
    """The exact M has no error, and its credit for the weights is that of an unlimited horizon."""
    rnn = Linear()
    s = torch.randn(8, 4, dtype=torch.float64)
    boundary = Boundary(sg.SyntheticGradient(), s, alpha=1.0)
    with torch.no_grad():
        boundary.rule.model.first.weight.copy_(rnn.value())
    loss, last = rnn(boundary.start(s))
    boundary.end(loss, last).backward()
    for p in boundary.rule.parameters():
        torch.testing.assert_close(p.grad, torch.zeros_like(p), atol=1e-12, rtol=0)
    credited = rnn.offset.grad.clone()
    rnn.offset.grad = None
    total, now = zeros(()), s
    for k in range(200):  # 0.7 ** 600 is nothing
        loss, now = rnn(now)
        if k == 0:
            first = now
        else:
            total = total + loss
    (far,) = torch.autograd.grad(total, first, retain_graph=True)
    torch.testing.assert_close(far * 8, first @ rnn.value(), rtol=1e-9, atol=1e-12)
    loss, last = rnn(s)
    torch.autograd.backward([loss, last], [None, last.detach() @ rnn.value() / 8])
    torch.testing.assert_close(credited, rnn.offset.grad, rtol=1e-10, atol=1e-12)


def test_bootstrapping_converges_to_the_true_value_gradient() -> None:
    rnn = Linear()
    torch.manual_seed(4)
    boundary = Boundary(sg.SyntheticGradient(), zeros(32, 4), alpha=1.0)
    optimizer = torch.optim.SGD(boundary.parameters(), 0.2)
    for _ in range(400):
        loss, last = rnn(boundary.start(torch.randn(32, 4, dtype=torch.float64)))
        optimizer.zero_grad()
        boundary.end(loss, last).backward()
        optimizer.step()
    torch.testing.assert_close(boundary.rule.model.first.weight.detach(), rnn.value(), atol=1e-6, rtol=0)


class Told(Rule):
    """Credits a constant; keeps what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[Tensor, Info, Message]] = []

    def credit(self, h: Tensor, info: Info) -> Credit:
        return Credit(torch.ones_like(h))

    def observe(self, h: Tensor, info: Info, message: Message, pending: Any = ()) -> None:
        self.heard.append((h, info, message))


def test_fresh_sequences_teach_nothing_and_those_that_are_over_get_nothing() -> None:
    boundary = Boundary(Told(), zeros(4, 2), alpha=0.5)
    fresh = torch.tensor([True, False, False, True])
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    state = torch.arange(8, dtype=torch.float64).view(4, 2)
    start = boundary.start(state, fresh=fresh, context=torch.arange(4))
    assert torch.equal(start, state)
    last = start * weight
    last.retain_grad()
    total = boundary.end(last.sum() / 4, last, ended=torch.tensor([False, True, False, True]))
    assert total.item() == 7.0
    total.backward()
    ((h, info, message),) = boundary.rule.heard
    assert torch.equal(h, state[[1, 2]])
    assert torch.equal(info.context, torch.tensor([1, 2]))
    assert message.gradient.tolist() == [[1.0, 1.0], [1.5, 1.5]]  # per example; α δ̂ where it goes on
    assert (last.grad * 4).tolist() == [[1.5, 1.5], [1.0, 1.0], [1.5, 1.5], [1.0, 1.0]]


def test_a_mask_of_all_is_as_good_as_true() -> None:
    boundary = Boundary(Told(), zeros(3, 2))
    start = boundary.start(zeros(3, 2), fresh=torch.ones(3, dtype=torch.bool))
    assert not start.requires_grad
    assert boundary.rule.heard == []


def test_episodes_of_unlike_lengths_learn_as_they_would_alone() -> None:
    """A batch in which sequences end and begin at different unrolls adds up from its sequences."""
    x, y = episode()
    ends = [1, 3, 0, 2, 3]  # the unroll with which each sequence's first episode ends

    def run(rows: list[int]) -> dict[str, Tensor]:
        net, _, _ = network("gru")
        boundary = Boundary(
            sg.SyntheticGradient((4,), norm=False), zeros(1, len(rows), H), batch_dim=1, reduction="sum"
        )
        torch.manual_seed(5)
        for p in boundary.parameters():
            nn.init.normal_(p, std=0.3)
        both = nn.ModuleDict({"net": net, "boundary": boundary})
        state = zeros(1, len(rows), H)
        for k in range(UNROLLS):
            fresh = torch.tensor([k == 0 or ends[r] == k - 1 for r in rows])
            ended = torch.tensor([ends[r] == k or k == UNROLLS - 1 for r in rows])
            state = boundary.start(torch.where(fresh[None, :, None], 0, state), fresh=fresh)
            features, state = net["core"](x[k][:, rows], state)
            loss = F.cross_entropy(
                net["head"](features).flatten(0, 1), y[k][:, rows].flatten(), reduction="sum"
            )
            boundary.end(loss, state, ended=ended).backward()
        return {n: g for n, g in grads(both).items() if n.startswith("net.")}

    together, alone = run([0, 1, 2, 3, 4]), [run([r]) for r in range(B)]
    for name, value in together.items():
        torch.testing.assert_close(
            value, torch.stack([a[name] for a in alone]).sum(0), rtol=1e-9, atol=1e-12, msg=name
        )


def test_a_scaled_loss_scales_the_credit_and_not_the_target() -> None:
    scale = 64.0
    found: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    for factor in (1.0, scale):
        net, state, _ = network("lstm")
        boundary = Boundary(Told(), state, batch_dim=1, loss_scale=lambda factor=factor: factor)
        x, y = (part[0] for part in episode())
        features, last = net["core"](x, boundary.start(state))
        (boundary.end(loss_of(net, features, y), last) * factor).backward()
        found.append((grads(net), {"target": boundary.rule.heard[0][2].gradient}))
    for name, value in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], value * scale, rtol=1e-10, atol=1e-12, msg=name)
    torch.testing.assert_close(found[1][1]["target"], found[0][1]["target"], rtol=1e-10, atol=1e-12)


def test_reduction_over_steps_too_gives_the_same_messages() -> None:
    heard = []
    for steps in (1, T):
        net, state, _ = network("lstm")
        boundary = Boundary(Told(), state, batch_dim=1, reduction=lambda h, n=steps: len(h) * n)
        x, y = (part[0] for part in episode())
        features, last = net["core"](x, boundary.start(state))
        boundary.end(loss_of(net, features, y) / steps, last).backward()
        heard.append(boundary.rule.heard[0][2].gradient)
    torch.testing.assert_close(heard[0], heard[1], rtol=1e-10, atol=1e-12)


def test_the_auxiliary_head_foresees_the_credit_and_teaches_the_features() -> None:
    boundary = Boundary(Told(), zeros(3, 2), alpha=0.5, future=FutureGradient(4, 2, weight=2.0))
    features = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    last = zeros(3, 2).requires_grad_()
    boundary.start(zeros(3, 2))
    ended = torch.tensor([False, False, True])
    total = boundary.end(features.sum() * 0, last, features=features, ended=ended)
    assert total.item() == 0.0
    total.backward()
    head = boundary.future.model[-1]
    # zero at first: d/db of 2 · mean over sequences and steps of ‖b − δ̂‖² is −4 · mean δ̂
    assert head.bias.grad.tolist() == pytest.approx([-4 * 2 / 3] * 2)
    expected = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]], dtype=torch.float64) / 3
    torch.testing.assert_close(last.grad, expected)
    with torch.no_grad():
        head.weight.fill_(1.0)
    boundary.start(zeros(3, 2))
    boundary.end(features.sum() * 0, last, features=features).backward()
    assert features.grad.abs().sum() > 0


def test_a_local_loss_of_the_rule_is_learned_and_does_not_show_in_the_loss() -> None:
    boundary = Boundary(sg.LocalLoss(CLASSES), zeros(4, 2))
    boundary.start(zeros(4, 2), fresh=True)
    last = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    total = boundary.end(last.sum() * 0, last, context=torch.tensor([0, 1, 2, 0]))
    assert total.item() == 0.0
    total.backward()
    assert all(p.grad is not None for p in boundary.parameters())


def test_evaluation_only_detaches() -> None:
    boundary = Boundary(sg.SyntheticGradient(), zeros(4, 2)).eval()
    state = torch.randn(4, 2, dtype=torch.float64, requires_grad=True) * 2
    start = boundary.start(state)
    assert not start.requires_grad
    loss = start.sum()
    assert boundary.end(loss, start) is loss
    boundary.train()
    with torch.no_grad():
        assert boundary.end(loss, start) is loss


def test_the_monitor_compares_credit_and_message() -> None:
    boundary = Boundary(Told(), zeros(4, 2), alpha=1.0)
    boundary.monitor = Monitor(every=1)
    start = boundary.start(zeros(4, 2))
    boundary.end(start.sum() * 0, start * 1).backward()
    (found,) = boundary.monitor.collect().values()
    assert found.cosine == pytest.approx(1.0)
    assert found.relative_error == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda b: b.start(zeros(4, 3)), r"start of an unroll .*\(4, 3\), expected \(B, 2\)"),
        (lambda b: b.start((zeros(4, 2), zeros(4, 2))), r"structure \(\*, \*\), expected \*"),
        (lambda b: b.start(zeros(4, 2), fresh=torch.tensor([True])), r"fresh is torch.bool of shape \(1,\)"),
        (lambda b: b.start(zeros(4, 2), fresh=torch.zeros(4)), r"fresh is torch.float32"),
        (lambda b: b.end(zeros(()), zeros(3, 2)), "a batch of 3, expected 4"),
        (lambda b: b.end(zeros(4), zeros(4, 2)), r"loss has shape \(4,\), expected a scalar"),
        (lambda b: b.end(zeros(()), zeros(4, 2).long()), "dtype torch.int64"),
        (lambda b: b.end(zeros(()), zeros(4, 2), ended=torch.ones(2) > 0), r"ended is torch.bool of shape"),
    ],
)
def test_what_does_not_fit_is_told(act: Any, words: str) -> None:
    boundary = Boundary(sg.SyntheticGradient(), zeros(4, 2))
    boundary.start(zeros(4, 2))
    with pytest.raises(ShapeError, match=words):
        act(boundary)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_rule_may_learn_now_and_then_and_gives_credit_always(every: int) -> None:
    net, state, batch_dim = network("lstm")
    boundary = Boundary(sg.SyntheticGradient(), state, batch_dim=batch_dim, observe_every=every)
    with torch.no_grad():
        for p in boundary.rule.parameters():
            p.normal_()
    x, y = episode()
    for k, (now, target) in enumerate(zip(x, y, strict=True)):
        features, state = net["core"](now, boundary.start(state, fresh=k == 0))
        ended = boundary.end_unroll(loss_of(net, features, target), state)
        boundary.zero_grad()
        ended.loss.backward()
        learned = all(p.grad is not None for p in boundary.rule.parameters())
        assert learned == (k > 0 and k % every == 0)
        assert ended.delta is not None
        assert ended.delta.any()


def test_arguments_out_of_range_are_told() -> None:
    with pytest.raises(ConfigError, match="observe_every=0: expected a number of unrolls"):
        Boundary(sg.SyntheticGradient(), zeros(4, 2), observe_every=0)
    with pytest.raises(ConfigError, match="alpha=-1.0: expected a finite number"):
        Boundary(sg.SyntheticGradient(), zeros(4, 2), alpha=-1.0)
    with pytest.raises(ConfigError, match="TrueGradient has the module below wait"):
        Boundary(sg.TrueGradient(), zeros(4, 2))
    with pytest.raises(ConfigError, match="foresees 3 numbers, expected the 2"):
        Boundary(sg.SyntheticGradient(), zeros(4, 2), future=FutureGradient(4, 3))
    with pytest.raises(ConfigError, match="no features are given"):
        Boundary(sg.SyntheticGradient(), zeros(4, 2), future=FutureGradient(4, 2)).end(zeros(()), zeros(4, 2))
    with pytest.raises(ConfigError, match="widths of at least 1"):
        FutureGradient(4, 2, (0,))
    with pytest.raises(ConfigError, match="weight=-1"):
        FutureGradient(4, 2, weight=-1)
    future = FutureGradient(4, 2)
    with pytest.raises(ShapeError, match=r"features of shape \(3, 5\), expected \(4, ..., 4\)"):
        future.loss(torch.zeros(3, 5), torch.zeros(4, 2))

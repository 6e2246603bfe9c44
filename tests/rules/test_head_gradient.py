"""The head gradient: what it finds, where it starts, and that it cannot run away."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthgrad as sg
from synthgrad.core import ConfigError, Info, Message, Rule, Site
from synthgrad.rules import HeadGradient, heads
from synthgrad.rules.ridge import RunningRidge

B, T, D, V = 4, 5, 3, 7
IGNORED = -100


def bound(
    rule: Rule, shape: tuple[int, ...] = (B, T, D), dtype: torch.dtype = torch.float64, **more: Any
) -> Any:
    torch.manual_seed(0)
    return rule.bind(Site("cut", shape, dtype, torch.device("cpu"), nn.Identity(), **more))


def tokens(**options: Any) -> HeadGradient:
    return bound(HeadGradient(V, heads.token_head(0), **options))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels(seed: int = 0) -> Tensor:
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


def given(rule: Any, h: Tensor, y: Tensor) -> Tensor:
    found = rule.credit(h, Info(context=y)).delta
    assert found is not None
    return found


def local(rule: Any, h: Tensor, y: Tensor) -> Tensor:
    """Return the credit of the plain local loss of the same head."""
    return rule.local_gradient(h, Info(context=y))


def test_the_local_gradient_is_the_credit_of_the_local_loss() -> None:
    rule = bound(sg.LocalLoss(V, heads.token_head(0)))
    h, y = drawn(B, T, D), labels()
    assert torch.equal(rule.local_gradient(h, Info(context=y)), given(rule, h, y))


def known() -> tuple[Tensor, Tensor, Tensor]:
    """Return some A, B and b; A far from one, and B as small as gradients are beside activations."""
    return drawn(D, D, seed=7) + 2 * torch.eye(D), drawn(D, D, seed=8) * 1e-3, drawn(D, seed=9) * 1e-3


@pytest.mark.parametrize("activations", [False, True])
def test_matrices_that_made_the_messages_are_found(activations: bool) -> None:
    """With next to no pull towards the local loss; gradients and activations differ by a factor of thousands."""
    a, b, c = known()
    b, c = b * activations, c * activations
    # Behind the normalisation alone, gradients have no part along (1, …, 1), where A would be anything.
    head = heads.token_head(1, block=lambda site: Causal())
    rule: Any = bound(
        HeadGradient(V, head, activations=activations, every=5, ridge=1e-9, memory=0.9, leash=math.inf)
    )
    for k in range(10):
        h, y = drawn(B, T, D, seed=k) * 30, labels(k)
        message = local(rule, h, y) @ a.t() + h @ b.t() + c
        rule.observe(h, Info(context=y), Message(message))
    if not activations:
        assert len(rule.map.weight) == D
    for found, right in zip(rule.matrices, (a, b, c), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-10)
    h, y = drawn(B, T, D, seed=50), labels(50)
    torch.testing.assert_close(given(rule, h, y), local(rule, h, y) @ a.t() + h @ b.t() + c)


def test_the_first_credits_are_those_of_the_local_loss_and_the_head_learns_as_it_does_there() -> None:
    rule, plain = tokens(every=3), bound(sg.LocalLoss(V, heads.token_head(0)))
    h, y = drawn(B, T, D), labels()
    for k in range(3):
        ours, theirs = (one.credit(h, Info(context=y)) for one in (rule, plain))
        assert torch.equal(ours.delta, theirs.delta), k
        assert torch.equal(ours.loss, theirs.loss)
        ours.loss.backward()
        theirs.loss.backward()
        rule.observe(h, Info(context=y), Message(drawn(B, T, D, seed=k)), ours.pending)
    assert not torch.equal(given(rule, h, y), plain.credit(h, Info(context=y)).delta)
    theirs = dict(plain.named_parameters())
    for name, p in rule.named_parameters():
        assert torch.equal(p.grad, theirs[name].grad), name


def test_what_is_pending_saves_the_gradient_of_the_head_and_late_messages_have_it_made_anew() -> None:
    kept, anew = tokens(every=1), tokens(every=1)
    h, y, d = drawn(B, T, D), labels(), drawn(B, T, D, seed=3)
    kept.observe(h, Info(context=y), Message(d), kept.credit(h, Info(context=y)).pending)
    anew.observe(h, Info(context=y), Message(d))
    assert torch.equal(kept.map.weight, anew.map.weight)
    changed = copy.deepcopy(anew)
    for rule in (anew, changed):
        if rule is changed:
            nn.init.normal_(rule.head.layers[2].weight)
        rule.observe(h, Info(context=y), Message(d))
    assert not torch.equal(anew.map.weight, changed.map.weight)
    assert all(p.grad is None for p in anew.parameters())


def test_with_next_to_no_data_it_stays_at_the_local_loss() -> None:
    rule = tokens(every=1, ridge=1e9, activations=True)
    h, y = drawn(B, T, D), labels()
    rule.observe(h, Info(context=y), Message(drawn(B, T, D, seed=1)))
    torch.testing.assert_close(given(rule, h, y), local(rule, h, y), rtol=1e-6, atol=1e-9)
    eye, zero, none = rule.matrices
    torch.testing.assert_close(eye, torch.eye(D, dtype=torch.float64), rtol=0, atol=1e-4)
    assert max(zero.abs().max(), none.abs().max()) < 1e-4


def hostile(kind: str, k: int) -> Tensor:
    """Return messages that no network sends."""
    message = drawn(B, T, D, seed=k)
    if kind == "huge":
        return message * 10.0 ** (2 * k % 40)
    if kind == "opposite":
        return message * (-1) ** k * 1e6
    if kind == "not finite":
        message[0, 0, 0] = (math.nan, math.inf, -math.inf)[k % 3]
        return message
    if kind == "overflow":
        return message * 1e200
    return message * 0 if k % 2 else message * 1e-30


@pytest.mark.parametrize("kind", ["huge", "opposite", "not finite", "overflow", "tiny"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activations", [False, True])
def test_it_stays_finite_and_on_its_leash_whatever_comes(
    kind: str, dtype: torch.dtype, activations: bool
) -> None:
    options = {"every": 2, "memory": 0.5, "ridge": 1e-6, "leash": 2.0, "activations": activations}
    rule = bound(HeadGradient(V, heads.token_head(0, num_chunks=1), **options), dtype=dtype)
    longest = 0.0
    for k in range(24):
        message = hostile(kind, k).to(dtype)
        h, y = drawn(B, T, D, seed=k).to(dtype), labels(k)
        rule.observe(h, Info(context=y), Message(message))
        if message.isfinite().all():
            longest = max(longest, message.flatten(1).norm(dim=1).max().item())
        delta = given(rule, h * 100, y)
        assert delta.isfinite().all(), k
        if k >= 2 and longest:
            usual = max(longest, local(rule, h * 100, y).flatten(1).norm(dim=1).max().item())
            assert delta.flatten(1).norm(dim=1).max().item() <= 2.0 * usual * (1 + 1e-5), k
    assert all(v.isfinite().all() for v in rule.state_dict().values())


def test_a_credit_is_as_long_as_the_leash_and_no_longer() -> None:
    rule = tokens(every=1, ridge=1e-9, leash=0.5, memory=0.9, activations=True)
    a, b, c = known()
    messages = []
    for k in range(3):
        h, y = drawn(B, T, D, seed=k), labels(k)
        messages.append(local(rule, h, y) @ a.t() + h @ b.t() + c)
        rule.observe(h, Info(context=y), Message(messages[-1]))
    weights = torch.tensor([0.81, 0.9, 1.0], dtype=torch.float64)
    squares = torch.stack([m.square().sum() for m in messages])
    usual = ((weights * squares).sum() / (weights.sum() * B)).sqrt()
    h, y = drawn(B, T, D, seed=70), labels(70)
    free = local(rule, h, y) @ a.t() + h @ b.t() + c
    norms = free.flatten(1).norm(dim=1)
    assert (norms > 0.5 * usual).any()
    assert (given(rule, h * 1.0, y).flatten(1).norm(dim=1) <= 0.5 * usual * (1 + 1e-9)).all()
    expected = free * (0.5 * usual / norms).clamp(max=1).view(-1, 1, 1)
    torch.testing.assert_close(given(rule, h, y), expected, rtol=1e-6, atol=1e-10)


def test_a_credit_that_overflows_is_that_of_the_local_loss() -> None:
    rule = bound(HeadGradient(V, heads.token_head(0), every=1), dtype=torch.float32)
    h, y = drawn(B, T, D).float(), labels()
    rule.observe(h, Info(context=y), Message(drawn(B, T, D, seed=1).float()))
    rule.map.weight.fill_(1e38)
    assert torch.equal(given(rule, h * 1e-3, y), local(rule, h * 1e-3, y))


def test_a_message_that_is_not_finite_changes_nothing() -> None:
    rule = tokens(every=2)
    h, y = drawn(B, T, D), labels()
    rule.observe(h, Info(context=y), Message(drawn(B, T, D, seed=1)))
    before = {n: v.clone() for n, v in rule.state_dict().items() if v.is_floating_point()}
    wrong = drawn(B, T, D)
    wrong[1, 2, 0] = math.nan
    rule.observe(h, Info(context=y), Message(wrong))  # the second: it is solved for what was there
    for name in ("map.products", "map.targets", "size"):
        assert torch.equal(rule.state_dict()[name], before[name]), name
    assert rule.map.weight.any()
    assert rule.messages == 2


@pytest.mark.parametrize("blocks", [0, 1])
def test_where_no_label_counts_there_is_no_credit_and_nothing_is_learned(blocks: int) -> None:
    """With a linear head at every masked token; behind a causal block, at those after the last label."""
    rule: Any = bound(
        HeadGradient(V, heads.token_head(blocks, block=lambda site: Causal()), every=1, activations=True)
    )
    h, y = drawn(B, T, D), labels()
    y[0] = IGNORED  # no label at all
    y[1, 3:] = IGNORED  # the end
    y[2, :2] = IGNORED  # the beginning
    info = Info(context=y)
    rule.observe(h, info, Message(drawn(B, T, D, seed=1)))
    assert rule.map.rows == 15 - 2 - (2 if blocks == 0 else 0)  # places that count
    assert rule.size[1] == 3  # examples
    delta = given(rule, h, y)
    assert not delta[0].any()
    assert not delta[1, 3:].any()
    assert (delta[2, :2].abs().sum(1) > 0).all() == bool(blocks)
    assert (delta[2, 2:].abs().sum(1) > 0).all()
    other = copy.deepcopy(rule)
    changed = drawn(B, T, D, seed=2)
    changed[1:] = drawn(B, T, D, seed=1)[1:]
    fresh: Any = bound(
        HeadGradient(V, heads.token_head(blocks, block=lambda site: Causal()), every=1, activations=True)
    )
    fresh.observe(h, info, Message(changed))
    assert torch.equal(fresh.map.weight, other.map.weight)


class Causal(nn.Module):
    """Each position sees itself and those before."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x.cumsum(1)).tanh()


@pytest.mark.parametrize(
    ("shape", "features_dim", "head"),
    [
        ((6,), None, None),
        ((3, 4, 5), None, None),
        ((4, 5, 3), -1, None),
        ((3, 4, 5), None, heads.convolutional_head(4)),
    ],
    ids=["vectors", "images", "channels last", "convolutional head"],
)
def test_features_are_mapped_at_every_place_wherever_they_are(
    shape: tuple[int, ...], features_dim: int | None, head: Any
) -> None:
    rule: Any = bound(
        HeadGradient(3, head, activations=True, every=4, ridge=1e-9, leash=math.inf),
        (B, *shape),
        features_dim=features_dim,
    )
    rule.eval()  # BatchNorm in the convolutional head
    at = 1 if features_dim is None else len(shape)
    size = (B, *shape)[at]
    a = drawn(size, size, seed=7) + 2 * torch.eye(size)
    b, c = drawn(size, size, seed=8), drawn(size, seed=9)
    y = torch.tensor([0, 1, 2, 1])

    def message(h: Tensor) -> Tensor:
        g, z = (v.movedim(at, -1) for v in (local(rule, h, y), h))
        return (g @ a.t() + z @ b.t() + c).movedim(-1, at)

    for k in range(12):
        h = drawn(B, *shape, seed=k)
        rule.observe(h, Info(context=y), Message(message(h)))
    h = drawn(B, *shape, seed=40)
    torch.testing.assert_close(given(rule, h, y), message(h), rtol=1e-5, atol=1e-7)


def test_nothing_is_left_to_an_optimizer_but_the_head_and_the_state_is_kept() -> None:
    rule, other = tokens(every=1), tokens(every=1)
    assert {n for n, _ in rule.named_parameters()} == {
        n for n, _ in bound(sg.LocalLoss(V, heads.token_head(0))).named_parameters()
    }
    h, y = drawn(B, T, D), labels()
    rule.observe(h, Info(context=y), Message(drawn(B, T, D, seed=1)))
    other.load_state_dict(rule.state_dict())
    assert torch.equal(given(rule, h, y), given(other, h, y))


def test_sums_stay_in_single_precision_in_a_network_of_half() -> None:
    rule = bound(HeadGradient(V, heads.token_head(0), every=1), dtype=torch.bfloat16)
    h, y = drawn(B, T, D).bfloat16(), labels()
    for k in range(3):
        rule.observe(h, Info(context=y), Message(drawn(B, T, D, seed=k).bfloat16()))
    sums = [rule.map.products, rule.map.targets, rule.map.weight, rule.size]
    assert all(v.dtype == torch.float32 for v in sums)
    kept = rule.map.products.clone()
    rule.float().bfloat16()
    assert torch.equal(rule.map.products, kept)
    assert rule.head.layers[2].weight.dtype == torch.bfloat16
    delta = given(rule, h, y)
    assert delta.dtype == torch.bfloat16
    assert delta.isfinite().all()


def test_it_follows_the_messages_better_than_the_local_loss_does() -> None:
    """In a network that trains, by the cosine between credit and message."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Linear(6, 8), nn.Tanh()),
        nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()),
        nn.Linear(8, 5),
    ).double()
    x = torch.randn(256, 6, dtype=torch.float64)
    y = x[:, :5].argmax(1)
    found = {}
    for name, rule in {"local": sg.LocalLoss(5), "mapped": HeadGradient(5)}.items():
        torch.manual_seed(1)
        net = sg.decouple(model, ["0"], rule, x)
        monitor = sg.Monitor(every=1)
        trainer = sg.engines.InProcess(
            net, nn.functional.cross_entropy, lambda p: torch.optim.Adam(p, 3e-3), monitor=monitor
        )
        for k in range(120):
            if k == 80:
                monitor.collect()
            trainer.step(x, y)
        found[name] = monitor.collect()["0"].cosine
    assert found["mapped"] > found["local"] + 0.1


def weighted_ridge(xs: list[Tensor], ys: list[Tensor], memory: float, ridge: float) -> Tensor:
    """Return the solution by its definition, for blocks of two and three inputs."""
    weights = [memory**k for k in range(len(xs))][::-1]
    x = torch.cat([x * w**0.5 for x, w in zip(xs, weights, strict=True)])
    y = torch.cat([y * w**0.5 for y, w in zip(ys, weights, strict=True)])
    rows = sum(len(x) * w for x, w in zip(xs, weights, strict=True))
    squares = x.square().sum(0) / rows
    s = torch.cat([squares[:2].mean().expand(2), squares[2:].mean().expand(3)])
    return torch.linalg.solve(x.t() @ x + torch.diag(ridge * (rows + 5) * s), x.t() @ y)


def test_the_ridge_is_that_of_its_definition_and_knows_no_scale() -> None:
    xs = [drawn(6, 5, seed=k) for k in range(3)]
    ys = [drawn(6, 2, seed=k + 10) for k in range(3)]
    every = torch.ones(6, 1, dtype=torch.bool)
    for scale in (1.0, 1e4, 1e-12):
        ridge = RunningRidge((2, 3), 2, memory=0.8, ridge=0.3).double()
        scaled = [torch.cat([x[:, :2], x[:, 2:] * scale], 1) for x in xs]
        for x, y in zip(scaled, ys, strict=True):
            assert ridge.add((x[:, :2], x[:, 2:]), y, every)
        ridge.solve()
        expected = weighted_ridge(xs, ys, 0.8, 0.3)
        expected[2:] /= scale
        torch.testing.assert_close(ridge.weight, expected)
        torch.testing.assert_close(ridge((scaled[0][:, :2], scaled[0][:, 2:])), scaled[0] @ ridge.weight)


def test_rows_that_do_not_count_are_left_out() -> None:
    x, y = drawn(6, 2), drawn(6, 2, seed=1)
    counts = torch.tensor([1, 0, 1, 1, 0, 1]).bool()
    solutions = []
    for rows, mask in ((slice(None), counts), (counts, counts[counts])):
        ridge = RunningRidge((2,), 2, memory=0.8, ridge=0.3).double()
        ridge.add((x[rows],), y[rows], mask.unsqueeze(1))
        ridge.solve()
        solutions.append(ridge.weight)
    torch.testing.assert_close(*solutions)


def test_a_block_of_zeros_has_no_weight() -> None:
    ridge = RunningRidge((2, 3), 2, memory=0.8, ridge=0.3).double()
    x, y = drawn(6, 2), drawn(6, 2, seed=1)
    ridge.add((x, torch.zeros(6, 3)), y, torch.ones(6, 1, dtype=torch.bool))
    ridge.solve()
    assert ridge.weight[:2].any()
    assert not ridge.weight[2:].any()
    empty = RunningRidge((2, 3), 2, memory=0.8, ridge=0.3)
    empty.solve()
    assert not empty.weight.any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every": 0}, "every=0: expected the number of messages"),
        ({"memory": 1.0}, "memory=1.0"),
        ({"ridge": 0.0}, "ridge=0.0: expected a finite number above 0"),
        ({"ridge": math.nan}, "ridge=nan"),
        ({"leash": 0}, "leash=0: expected a number above 0"),
        ({"leash": math.nan}, "leash=nan"),
        ({"classes": 1}, "classes=1"),
    ],
)
def test_arguments_out_of_range_are_told(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        HeadGradient(**{"classes": V, **options})

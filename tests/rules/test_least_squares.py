"""Least squares: what a batch changes, for which class, and how fast a network is followed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from synthgrad.core import ConfigError, ContextError, CutError, Info, Message, ShapeError, Site
from synthgrad.rules import LeastSquaresGradient

H = 6


def bound(
    rule: LeastSquaresGradient, shape: tuple[int, ...] = (H,), dtype: torch.dtype = torch.float64
) -> LeastSquaresGradient:
    return rule.bind(Site("cut", (3, *shape), dtype, torch.device("cpu"), nn.Identity()))


def of(*classes: int) -> Info:
    return Info(context=torch.tensor(classes), step=0)


def given(rule: LeastSquaresGradient, h: Tensor, info: Info | None = None) -> Tensor:
    delta = rule.credit(h, info or Info()).delta
    assert delta is not None
    return delta


def drawn(num: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    h, d = (torch.randn(num, H, generator=generator, dtype=torch.float64) for _ in range(2))
    return h, d


def test_credit_begins_at_zero() -> None:
    h, _ = drawn(4)
    assert torch.equal(given(bound(LeastSquaresGradient()), h), torch.zeros_like(h))


def test_a_batch_is_fitted_to_its_rate() -> None:
    """With next to no damping a share of the error goes: all of it at rate 1."""
    h, d = drawn(4)
    for rate in (1.0, 0.25):
        rule = bound(LeastSquaresGradient(rate=rate, damping=1e-12))
        rule.observe(h, Info(), Message(d))
        torch.testing.assert_close(given(rule, h), rate * d)


def test_the_change_is_the_smallest_that_does_it() -> None:
    h, d = drawn(4)
    rule = bound(LeastSquaresGradient(rate=1.0, damping=1e-12))
    before = torch.randn_like(rule.weight)
    rule.weight.copy_(before)
    x = torch.cat([h, torch.ones(4, 1, dtype=h.dtype)], 1)
    rule.observe(h, Info(), Message(d))
    torch.testing.assert_close(rule.weight[0] - before[0], torch.linalg.pinv(x) @ (d - x @ before[0]))


def test_damping_is_ridge_regression_around_what_was_known() -> None:
    h, d = drawn(20)
    rule = bound(LeastSquaresGradient(rate=1.0, damping=0.3))
    rule.observe(h, Info(), Message(d))
    x = torch.cat([h, torch.ones(20, 1, dtype=h.dtype)], 1)
    ridge = 0.3 * x.square().sum(1).mean() * torch.eye(H + 1, dtype=h.dtype)
    torch.testing.assert_close(rule.weight[0], torch.linalg.solve(x.t() @ x + ridge, x.t() @ d))


def test_classes_have_matrices_of_their_own() -> None:
    h, d = drawn(6)
    mixed, apart = (bound(LeastSquaresGradient(3)) for _ in range(2))
    mixed.observe(h, of(0, 2, 0, 0, 2, 2), Message(d))
    for k, rows in ((0, [0, 2, 3]), (2, [1, 4, 5])):
        apart.observe(h[rows], of(k, k, k), Message(d[rows]))
    torch.testing.assert_close(mixed.weight, apart.weight)
    assert not mixed.weight[1].any()
    torch.testing.assert_close(given(mixed, h, of(0, 2, 0, 0, 2, 2))[1], given(apart, h[1:2], of(2))[0])


def test_a_linear_gradient_is_found_in_a_few_batches() -> None:
    a, b = drawn(H, seed=9)
    rule = bound(LeastSquaresGradient(damping=1e-4))
    for seed in range(12):
        h, _ = drawn(16, seed)
        rule.observe(h, Info(), Message(h @ a + b[0]))
    h, _ = drawn(16, seed=77)
    true = h @ a + b[0]
    assert (given(rule, h) - true).norm() < 0.01 * true.norm()


def test_maps_are_flat_and_keep_their_shape() -> None:
    rule = bound(LeastSquaresGradient(rate=1.0, damping=1e-12), (2, 3))
    h, d = (v.view(-1, 2, 3) for v in drawn(4))
    rule.observe(h, Info(), Message(d))
    torch.testing.assert_close(given(rule, h), d)


def test_half_precision_is_solved_in_single() -> None:
    rule = bound(LeastSquaresGradient(rate=1.0, damping=1e-6), dtype=torch.bfloat16)
    h, d = (v.bfloat16() for v in drawn(4))
    rule.observe(h, Info(), Message(d))
    torch.testing.assert_close(given(rule, h), d, rtol=0.05, atol=0.05)


def test_nothing_is_left_to_an_optimizer_and_the_state_is_kept() -> None:
    rule, other = (bound(LeastSquaresGradient(2)) for _ in range(2))
    assert not list(rule.parameters())
    h, d = drawn(2)
    rule.observe(h, of(0, 1), Message(d))
    other.load_state_dict(rule.state_dict())
    assert torch.equal(given(rule, h, of(0, 1)), given(other, h, of(0, 1)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"context": 0}, "number of classes"),
        ({"rate": 0.0}, "above 0 up to 1"),
        ({"rate": 1.5}, "above 0 up to 1"),
        ({"damping": 0.0}, "above 0"),
        ({"damping": float("nan")}, "finite"),
    ],
)
def test_bad_arguments_are_told(options: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LeastSquaresGradient(**options)  # pyright: ignore[reportArgumentType]


def test_what_does_not_fit_is_told() -> None:
    rule = bound(LeastSquaresGradient(3))
    h, _ = drawn(2)
    with pytest.raises(ContextError, match="needs a context"):
        rule.check(h, Info())
    with pytest.raises(ContextError, match="an integer for each example"):
        rule.check(h, Info(context=torch.ones(2, 3)))
    with pytest.raises(ContextError, match="class index 3, expected 0 to 2"):
        rule.credit(h, of(0, 3))
    with pytest.raises(ShapeError, match="expected 6 features"):
        rule.check(h[:, :4], of(0, 1))
    with pytest.raises(CutError, match="has no features"):
        LeastSquaresGradient().bind(Site("cut", (3,), torch.float64, torch.device("cpu"), nn.Identity()))

from __future__ import annotations

import pytest
import torch

from synthgrad.core import DivergedError, Guard, Monitor, quality


def test_quality_of_known_pairs() -> None:
    truth = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    same = quality(truth, truth)
    assert (same.cosine, same.relative_error, same.sign_agreement) == pytest.approx((1, 0, 1))
    opposite = quality(-truth, truth)
    assert (opposite.cosine, opposite.relative_error, opposite.sign_agreement) == pytest.approx((-1, 2, 0))
    nothing = quality(torch.zeros(2, 2), truth)
    assert (nothing.cosine, nothing.relative_error, nothing.sign_agreement) == pytest.approx((0, 1, 0))
    half = quality(torch.tensor([[3.0, -4.0], [1.0, 1.0]]), truth)
    assert half.sign_agreement == 0.5  # zeros of the message do not count


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e18])
def test_quality_does_not_depend_on_scale(scale: float) -> None:
    delta, truth = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])
    assert quality(delta * scale, truth * scale).cosine == pytest.approx(0.8, abs=1e-5)


def test_monitor_measures_every_so_often() -> None:
    monitor = Monitor(every=3)
    truth = torch.ones(2)
    for k in range(7):
        monitor.record("a", truth if k % 3 == 0 else -truth, truth)
    monitor.record("b", None, truth)
    found = monitor.collect()
    assert set(found) == {"a"}
    assert found["a"].cosine == pytest.approx(1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_guard_names_the_place_and_step(bad: float) -> None:
    guard = Guard()
    guard.check("layer1", 3, torch.tensor([1.0, 2.0]))
    with pytest.raises(DivergedError, match="interface 'layer1' was not finite at step 4") as caught:
        guard.check("layer1", 4, torch.tensor([1.0, bad]))
    assert (caught.value.where, caught.value.step) == ("layer1", 4)
    with pytest.raises(DivergedError, match="the loss was not finite"):
        guard.check("loss", 0, torch.tensor(bad))


class Elsewhere(torch.Tensor):
    """A tensor that claims to lie on an accelerator: the queued check can be tested without one."""

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False


def test_queued_guard_finds_the_first_bad_step() -> None:
    guard = Guard(every=5)
    good, bad = torch.ones(2).as_subclass(Elsewhere), torch.tensor([1.0, float("nan")]).as_subclass(Elsewhere)
    for step in range(4):
        guard.check("a", step, bad if step == 2 else good)
    with pytest.raises(DivergedError, match="at step 2"):
        guard.flush()
    for step in range(10, 15):
        guard.check("a", step, bad if step == 13 else good)
    with pytest.raises(DivergedError, match="at step 13"):
        guard.check("a", 16, good)
    guard.flush()

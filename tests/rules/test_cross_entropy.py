"""Cross entropy in parts: the losses and gradients of PyTorch's own, with one part of the scores alive at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from synthgrad.core import ConfigError
from synthgrad.rules.cross_entropy import cross_entropy_in_parts

N, D, V = 11, 4, 7
IGNORED = -100


def given(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(N, D), (V, D), (V,)]
    z, w, b = (torch.randn(s, generator=generator, dtype=torch.float64).mul(scale).to(dtype) for s in shapes)
    y = torch.randint(0, V, (N,), generator=generator)
    y[3] = y[10] = IGNORED
    return z, w, b, y


@pytest.mark.parametrize("num_parts", [1, 3, 50])
@pytest.mark.parametrize("with_bias", [False, True])
def test_its_derivatives_are_right(num_parts: int, with_bias: bool) -> None:
    z, w, b, y = given()
    inputs = (z.requires_grad_(), w.requires_grad_(), *([b.requires_grad_()] if with_bias else []))

    def losses(z: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return cross_entropy_in_parts(z, w, b, y, num_parts, IGNORED)

    assert torch.autograd.gradcheck(losses, inputs)
    expected = F.cross_entropy(F.linear(*inputs), y, reduction="none", ignore_index=IGNORED)
    torch.testing.assert_close(losses(*inputs), expected)


def test_large_scores_do_not_overflow() -> None:
    z, w, _, y = given(scale=100.0)
    z.requires_grad_()
    found = cross_entropy_in_parts(z, w, None, y, 3, IGNORED)
    expected = F.cross_entropy(z @ w.t(), y, reduction="none")
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(v.sum(), z)[0] for v in (found, expected)]
    torch.testing.assert_close(*grads)


def test_only_what_is_asked_for_is_computed() -> None:
    z, w, _, y = given()
    cross_entropy_in_parts(z, w.requires_grad_(), None, y, 3, IGNORED).sum().backward()
    assert w.grad is not None
    assert z.grad is None


def test_half_precision_has_its_exponentials_and_losses_in_single() -> None:
    z, w, _, y = given(torch.bfloat16)
    found = cross_entropy_in_parts(z.requires_grad_(), w.requires_grad_(), None, y, 3, IGNORED)
    expected = F.cross_entropy((z @ w.t()).float(), y, reduction="none")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert z.grad is not None
    assert z.grad.dtype == torch.bfloat16
    wide = [t.detach().float().requires_grad_() for t in (z, w)]
    F.cross_entropy(wide[0] @ wide[1].t(), y, reduction="sum").backward()
    for ours, theirs in zip((z, w), wide, strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad.float(), theirs.grad, rtol=0.05, atol=0.05)


def test_autocast_makes_the_scores_in_its_type() -> None:
    z, w, _, y = given(torch.float32)
    half, full = (t.to(torch.bfloat16) for t in (z, w)), (z.requires_grad_(), w.requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        found = cross_entropy_in_parts(*full, None, y, 3, IGNORED)
    assert torch.equal(found, cross_entropy_in_parts(*half, None, y, 3, IGNORED))
    found.sum().backward()
    assert z.grad is not None
    assert z.grad.dtype == torch.float32


def test_no_rows_have_no_losses() -> None:
    z, w, _, y = given()
    found = cross_entropy_in_parts(z[:0].requires_grad_(), w.requires_grad_(), None, y[:0], 3, IGNORED)
    assert found.shape == (0,)
    found.sum().backward()
    assert w.grad is not None
    assert not w.grad.any()


def test_it_cannot_be_differentiated_twice_in_silence() -> None:
    z, w, _, y = given()
    z.requires_grad_()
    total = cross_entropy_in_parts(z, w, None, y, 3, IGNORED).sum()
    with pytest.raises(ConfigError, match="can be differentiated once"):
        torch.autograd.grad(total, z, create_graph=True)


class Alive(TorchDispatchMode):
    """Notes the most numbers that tensors made inside have held at one time, small ones left aside.

    Args:
        least: smallest tensor that counts.
    """

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least
        self.most = 0
        self._held: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, tuple | list) else (found,):
            if isinstance(value, Tensor) and value.numel() >= self.least:
                storage = value.untyped_storage()
                self._held[StorageWeakRef(storage)] = storage.nbytes() // value.element_size()
        self._held = {ref: size for ref, size in self._held.items() if not ref.expired()}
        self.most = max(self.most, sum(self._held.values()))
        return found


def test_one_part_of_the_scores_is_alive_at_a_time() -> None:
    """Forward and backward: with PyTorch's own, some four copies of all scores are."""
    rows, vocabulary = 512, 300
    z, w = torch.randn(rows, D, requires_grad=True), torch.randn(vocabulary, D, requires_grad=True)
    y = torch.randint(0, vocabulary, (rows,))
    least = rows * D + 1  # the gradients of the two are smaller
    with Alive(least) as seen:
        cross_entropy_in_parts(z, w, None, y, 16, IGNORED).sum().backward()
    assert seen.most == rows * vocabulary // 16
    with Alive(least) as seen:
        F.cross_entropy(z @ w.t(), y, reduction="none").sum().backward()
    assert seen.most > rows * vocabulary

"""Values of 8 and 4 bits, with a scale for every block."""

from __future__ import annotations

import math

import pytest
import torch

from synthgrad.core import ConfigError
from synthgrad.engines.codecs import Codec, blocks

CPU = torch.device("cpu")
SHAPES = [(3, 64), (1,), (2, 3, 5), (7, 10), (1, 0), (4, 3, 8, 8)]


def again(codec: Codec, t: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    data = codec.encode(t)
    assert data.dtype == torch.uint8
    assert data.shape == (codec.num_bytes(t.shape),)
    return codec.decode(data, t.shape, CPU, dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("bits", "steps"), [(8, 127), (4, 7)])
def test_a_value_is_half_a_step_of_its_block_away_at_most(
    shape: tuple[int, ...], bits: int, steps: int
) -> None:
    torch.manual_seed(0)
    t = torch.randn(shape) * torch.logspace(-6, 3, math.prod(shape)).view(shape)  # blocks of unlike sizes
    found = again(blocks(bits, 16), t)
    assert found.shape == t.shape
    pieces = zip(t.flatten().split(16), found.flatten().split(16), strict=True)
    for given, made in pieces:
        if given.numel():
            # The scale is rounded to 8 binary digits: the largest value may be off by as much.
            most = given.abs().max().item()
            assert (given - made).abs().max().item() <= most * (0.5 / steps * 1.01 + 2**-8)


def test_what_fits_comes_back_exactly() -> None:
    for bits, steps in ((8, 127), (4, 7)):
        whole = torch.randint(-steps, steps + 1, (5, 64)).float()
        whole[:, 0] = steps
        whole[1] *= 2**-20
        whole[2] = 0
        whole[3, 0] = -steps
        assert torch.equal(again(blocks(bits), whole), whole)
        assert torch.equal(again(blocks(bits), whole.double(), torch.float64), whole.double())
        assert torch.equal(again(blocks(bits), whole.t().contiguous().t()), whole)


@pytest.mark.parametrize(
    ("bits", "size", "expected"), [(8, 64, 8.25), (4, 64, 4.25), (8, 32, 8.5), (4, 128, 4.125)]
)
def test_bytes_of_a_value(bits: int, size: int, expected: float) -> None:
    assert blocks(bits, size).num_bytes((2048, 128)) * 8 / (2048 * 128) == expected


def test_a_block_with_a_value_that_is_not_finite_is_not_finite_and_no_other() -> None:
    for bits in (8, 4):
        for bad in (math.nan, math.inf, -math.inf):
            t = torch.ones(3, 8)
            t[1, 2] = bad
            found = again(blocks(bits, 8), t)
            torch.testing.assert_close(found[::2], t[::2], rtol=2**-8, atol=0)
            assert not found[1].isfinite().all()


def test_values_beyond_the_smallest_and_largest_do_not_become_others() -> None:
    tiny = torch.full((1, 8), 1e-42)
    assert again(blocks(8, 8), tiny).abs().max() <= 2e-42
    large = torch.full((1, 8), 3e38)
    torch.testing.assert_close(again(blocks(8, 8), large), large, rtol=0.01, atol=0)


@pytest.mark.parametrize(
    ("bits", "size", "said"),
    [
        (5, 64, r"blocks\(5\): expected 8 or 4 bits"),
        (8, 7, "size=7: expected an even number"),
        (8, 0, "size=0: expected"),
    ],
)
def test_other_bits_and_sizes_are_refused(bits: int, size: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        blocks(bits, size)

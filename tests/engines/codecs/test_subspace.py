"""Activations and messages in a subspace that a seed fixes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from synthgrad.core import ConfigError
from synthgrad.engines.codecs import Codec, blocks, subspace

CPU = torch.device("cpu")


def again(codec: Codec, t: torch.Tensor) -> torch.Tensor:
    data = codec.encode(t)
    assert data.shape == (codec.num_bytes(t.shape),)
    return codec.decode(data, t.shape, CPU, t.dtype)


def test_it_is_the_orthogonal_projection_onto_a_subspace_of_that_many_features() -> None:
    projection = again(subspace(3, seed=1), torch.eye(8))  # its matrix, row by row
    torch.testing.assert_close(projection, projection.T, rtol=0, atol=1e-6)
    torch.testing.assert_close(projection @ projection, projection, rtol=0, atol=1e-6)
    assert projection.trace().item() == pytest.approx(3, abs=1e-5)
    other = again(subspace(3, seed=2), torch.eye(8))
    assert (projection - other).abs().max() > 0.1


def test_of_a_message_nothing_is_lost_that_the_stage_above_has_found() -> None:
    """The gradient of what has been received, sent back by the same codec, is the gradient of what was sent."""
    torch.manual_seed(0)
    codec, above = subspace(3), nn.Linear(8, 2)
    h = torch.randn(5, 8)
    received = again(codec, h).requires_grad_()
    above(received).square().sum().backward()
    assert received.grad is not None
    message = again(codec, received.grad)
    basis = again(codec, torch.eye(8))
    direct = h.clone().requires_grad_()
    above(direct @ basis).square().sum().backward()
    torch.testing.assert_close(message, direct.grad, rtol=1e-5, atol=1e-6)


def test_all_features_are_the_tensor_itself() -> None:
    t = torch.randn(2, 3, 6)
    torch.testing.assert_close(again(subspace(6), t), t, rtol=0, atol=1e-5)


def test_bytes_are_those_of_the_codec_inside() -> None:
    assert subspace(32).num_bytes((2048, 128)) == 2048 * 32 * 4
    assert subspace(32, inner=blocks(8)).num_bytes((2048, 128)) == blocks(8).num_bytes((2048, 32))
    assert "8 bits in blocks of 64" in subspace(32, inner=blocks(8)).name
    t = torch.randn(4, 128)
    torch.testing.assert_close(
        again(subspace(32, inner=blocks(8)), t), again(subspace(32), t), rtol=0, atol=0.05
    )


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(ConfigError, match=r"messages of 8 features.*expected as many as the subspace has"):
        subspace(9).num_bytes((2, 8))
    with pytest.raises(ConfigError, match="rank=0: expected"):
        subspace(0)
    with pytest.raises(ConfigError, match="inner=8: expected a codec"):
        subspace(2, inner=8)  # pyright: ignore[reportArgumentType]

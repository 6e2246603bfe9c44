"""Codecs around the modules of a pipeline's stages: activations up, gradients down."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from synthgrad.lab.bench.pipeline.wires import Wired, codec_of, on_wire


@pytest.mark.parametrize(("wire", "error"), [("bfloat16", 2**-8), ("8 bits", 0.02), ("4 bits", 0.2)])
@pytest.mark.parametrize("rows", [3, 8])
def test_both_ways_only_what_the_codec_loses_is_lost(wire: str, error: float, rows: int) -> None:
    torch.manual_seed(0)
    below, above = nn.Linear(6, 10), nn.Linear(10, 5)
    codec = codec_of(wire)
    assert codec is not None
    x = torch.randn(rows, 4, 6)
    lower = Wired(copy.deepcopy(below), codec, None, encodes=True)
    upper = Wired(copy.deepcopy(above), codec, (rows, 4, 10), encodes=False)
    sent = lower(x)
    assert sent.dtype == torch.float32
    assert sent.shape == on_wire(codec, torch.empty(rows, 4, 10)).shape
    assert 0 <= 4 * sent.numel() - codec.num_bytes((rows, 4, 10)) < 4
    upper(sent).square().mean().backward()
    h = below(x)
    above(h).square().mean().backward()
    for ours, theirs in ((lower.module, below), (upper.module, above)):
        for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert found.grad is not None
            assert expected.grad is not None
            difference = (found.grad - expected.grad).norm() / expected.grad.norm()
            assert 0 < difference < error


def test_without_a_codec_the_activation_itself_crosses() -> None:
    assert codec_of("float32") is None
    assert on_wire(None, torch.empty(3, 4)).shape == (3, 4)

"""Bits per character, against models whose figure is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from synthgrad.core import ConfigError
from synthgrad.lab.tasks import TextStream, bits, bits_per_char, recurrent_network


class Unigram(nn.Module):
    """Gives every character the same logits, whatever came before."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        return ()

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.get_buffer("logits").expand(*x.shape, -1), state


class Counting(nn.Module):
    """Is certain that the next number is one more than the last: right only where the text counts."""

    def initial_state(self, batch_size: int) -> Tensor:
        return torch.zeros(batch_size, dtype=torch.int64)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        # Reads the first character only; later ones are known from the state and the place in the unroll.
        begin = torch.where(state == 0, x[:, 0] + 1, state)
        expected = begin.unsqueeze(1) + torch.arange(x.shape[1])
        return nn.functional.one_hot(expected, 100).double() * 1e3, expected[:, -1] + 1


class Failing(Unigram):
    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        raise RuntimeError("out of order")


def _tokens(n: int, classes: int = 7) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize(
    ("nats", "expected"), [(math.log(2), 1), (math.log(256), 8), (0, 0), (1, 1.4426950408889634)]
)
def test_bits_of_nats(nats: float, expected: float) -> None:
    assert bits(nats) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n", "batch_size", "unroll"), [(100, 3, 7), (2, 1, 1), (64, 63, 100)])
def test_uniform_model_needs_the_logarithm(dtype: torch.dtype, n: int, batch_size: int, unroll: int) -> None:
    net = Unigram(torch.zeros(51, dtype=dtype))
    rel = 1e-14 if dtype == torch.float64 else 1e-7
    assert bits_per_char(net, _tokens(n), batch_size, unroll) == pytest.approx(math.log2(51), rel=rel)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 150), st.data())
def test_every_character_but_the_first_counts_once(n: int, data: st.DataObject) -> None:
    batch_size = data.draw(st.integers(1, n - 1))
    unroll = data.draw(st.integers(1, n))
    logits = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = _tokens(n).to(torch.uint8)
    expected = -logits.log_softmax(0)[tokens[1:].long()].mean().item() / math.log(2)
    assert bits_per_char(Unigram(logits), tokens, batch_size, unroll) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("unroll", [1, 4, 33])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_state_is_carried_from_unroll_to_unroll(batch_size: int, unroll: int) -> None:
    # Anything but the right state costs a thousand nats.
    assert bits_per_char(Counting(), torch.arange(1, 35), batch_size, unroll) == 0


@pytest.mark.parametrize(
    "net",
    [
        recurrent_network("lstm", 7, 7, 6, layers=2),
        recurrent_network("gru", 7, 7, 6),
    ],
    ids=["lstm", "gru"],
)
def test_length_of_unrolls_changes_nothing(net: Any) -> None:
    net, tokens = net.double(), _tokens(60)
    logits, _ = net(tokens[None, :-1], net.initial_state(1))
    expected = nn.functional.cross_entropy(logits[0], tokens[1:]).item() / math.log(2)
    for unroll in (1, 7, 59, 1000):
        assert bits_per_char(net, tokens, 1, unroll) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_network_is_left_in_its_mode_and_without_gradients(training: bool) -> None:
    net = recurrent_network("rnn", 7, 7, 6).train(training)
    modes: list[bool] = []
    net.head.register_forward_hook(lambda module, _, __: modes.append(module.training))
    bits_per_char(net, _tokens(20), 2, 5)
    assert set(modes) == {False}
    assert net.training is training
    assert all(p.grad is None for p in net.parameters())


def test_mode_is_restored_when_the_network_fails() -> None:
    net = Failing(torch.zeros(7))
    with pytest.raises(RuntimeError, match="out of order"):
        bits_per_char(net, _tokens(20), 2, 5)
    assert net.training


@pytest.mark.parametrize(("n", "batch_size"), [(10, 0), (10, 10), (1, 1), (0, 1)])
def test_bad_batch_size_is_refused(n: int, batch_size: int) -> None:
    with pytest.raises(ConfigError, match=f"batch size {batch_size}: expected 1 to .* for {n} characters"):
        bits_per_char(Unigram(torch.zeros(7)), _tokens(n), batch_size, 5)


@pytest.mark.parametrize("unroll", [0, -1])
def test_bad_unroll_is_refused(unroll: int) -> None:
    with pytest.raises(ConfigError, match=f"unroll of {unroll}: expected at least 1"):
        bits_per_char(Unigram(torch.zeros(7)), _tokens(10), 2, unroll)


def test_a_network_learns_what_takes_a_memory_across_unrolls() -> None:
    # After "a" comes "b" or "c" in turn: unrolls of two never show the last one of them and the next.
    tokens = torch.tensor([0, 1, 0, 2]).repeat(60)
    net: Any = recurrent_network("lstm", 3, 3, 12)
    optimizer = torch.optim.Adam(net.parameters(), 0.03)
    stream = TextStream(tokens, 4)
    for _ in range(150):
        unroll = stream.next_unroll(2)
        if unroll.first:
            state = net.initial_state(4)
        outputs, state = net(unroll.x, tuple(part.detach() for part in state))
        optimizer.zero_grad()
        nn.functional.cross_entropy(outputs.flatten(0, 1), unroll.y.flatten()).backward()
        optimizer.step()
    known = bits_per_char(net, tokens, 1, 2)
    assert known < 0.1
    # Without what was carried, every second character is a guess between two: half a bit a character.
    forgetful = [net(tokens[i : i + 2][None], net.initial_state(1))[0] for i in range(0, 200, 2)]
    logits, y = torch.cat(forgetful, 1)[0], tokens[1:201]
    assert bits(nn.functional.cross_entropy(logits, y).item()) > 0.4

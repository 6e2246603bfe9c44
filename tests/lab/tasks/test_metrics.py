"""Bits per character and nats per token, against models whose figure is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from synthgrad.core import ConfigError, ShapeError
from synthgrad.lab.tasks import (
    TextStream,
    TokenText,
    bits,
    bits_per_char,
    load_tokens,
    recurrent_network,
    token_loss,
)
from synthgrad.lab.tasks.gpt import gpt


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


# Language models without a state


class Guess(nn.Module):
    """Scores that depend on the last token alone; remembers the batches that it was given."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(vocabulary, vocabulary, generator=generator).double())
        self.given: list[Tensor] = []
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.given.append(x)
        self.modes.append(self.training or torch.is_grad_enabled())
        return self.table[x]


def _text(kind: str = "bpe") -> TokenText:
    return load_tokens("shakespeare-50k", tokens=kind, vocabulary=300 if kind == "bpe" else None)


@pytest.mark.parametrize("kind", ["characters", "bytes", "bpe"])
@pytest.mark.parametrize(
    ("n", "context", "batch_size"), [(2, 1, 1), (50, 7, 3), (29, 7, 2), (22, 7, 9), (6, 64, 4)]
)
def test_every_token_but_the_first_counts_once(kind: str, n: int, context: int, batch_size: int) -> None:
    text = _text(kind)
    tokens, net = text.valid[:n], Guess(text.vocabulary)
    losses = nn.functional.cross_entropy(net(tokens[:-1].long()), tokens[1:].long(), reduction="none")
    found = token_loss(net, text, tokens, context, batch_size)
    assert found.nats_per_token == pytest.approx(losses.mean().item(), rel=1e-12)
    characters = len(text.decode(tokens[1:]))  # of a text in ASCII
    assert (found.num_tokens, found.num_characters) == (n - 1, characters)
    assert found.bits_per_char == pytest.approx(losses.sum().item() / math.log(2) / characters, rel=1e-12)
    assert {x.shape[1] for x in net.given[1:]} == {context}
    assert max(len(x) for x in net.given[1:]) <= batch_size


def test_windows_do_not_overlap_and_the_last_is_padded() -> None:
    text = _text("bytes")
    net, tokens = Guess(256), text.valid[:8]
    token_loss(net, text, tokens, 3, 2)
    x = tokens.tolist()
    assert [batch.tolist() for batch in net.given] == [[x[0:3], x[3:6]], [[x[6], 0, 0]]]


def test_a_window_has_the_context_that_a_causal_network_sees_in_it() -> None:
    text = _text()
    net = gpt(text.vocabulary, width=16, blocks=1, heads=2, context=8).double()
    tokens = text.valid[:30].long()
    with torch.no_grad():
        losses = [
            nn.functional.cross_entropy(
                net(tokens[None, k : min(k + 8, 29)])[0], tokens[k + 1 : k + 9], reduction="sum"
            )
            for k in range(0, 29, 8)
        ]
    found = token_loss(net, text, tokens, 8, 3)
    assert found.nats_per_token == pytest.approx(float(sum(losses)) / 29, rel=1e-12)


@pytest.mark.parametrize("kind", ["characters", "bytes", "bpe"])
def test_who_knows_nothing_needs_the_same_bits_whatever_the_batch(kind: str) -> None:
    text = _text(kind)
    net = Guess(text.vocabulary)
    nn.init.zeros_(net.table)
    found = token_loss(net, text, text.test, 64)
    assert found.nats_per_token == pytest.approx(math.log(text.vocabulary), rel=1e-12)
    first = text.characters_per_token.test * len(text.test) - found.num_characters
    assert 1 <= first == len(text.decode(text.test[:1]))


def test_characters_agree_with_those_of_a_recurrent_network() -> None:
    text = _text("characters")
    logits = torch.randn(text.vocabulary, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = Guess(text.vocabulary)
    with torch.no_grad():
        net.table.copy_(logits.expand_as(net.table))
    expected = bits_per_char(Unigram(logits), text.valid, 1, 100)
    assert token_loss(net, text, text.valid, 64).bits_per_char == pytest.approx(expected, rel=1e-12)


def test_loss_of_low_precision_is_summed_in_high() -> None:
    text = _text("bytes")
    net = Guess(256).to(torch.bfloat16)
    low = token_loss(net, text, text.valid, 64).nats_per_token
    assert low == pytest.approx(token_loss(net.double(), text, text.valid, 64).nats_per_token, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_model_is_left_in_its_mode_and_without_gradients(training: bool) -> None:
    text = _text("bytes")
    net = Guess(256).train(training)
    token_loss(net, text, text.valid[:20], 4, 2)
    assert set(net.modes) == {False}
    assert net.training is training
    assert net.table.grad is None


@pytest.mark.parametrize("n", [0, 1])
def test_part_without_a_token_to_predict_is_refused(n: int) -> None:
    text = _text("bytes")
    with pytest.raises(
        ConfigError, match=f"shakespeare-50k: a part of {n} tokens has no character to predict"
    ):
        token_loss(Guess(256), text, text.valid[:n], 4)


def test_part_that_predicts_the_rest_of_a_character_alone_is_refused() -> None:
    text = _text("bytes")
    with pytest.raises(ConfigError, match="a part of 2 tokens has no character to predict"):
        token_loss(Guess(256), text, text.encode("é"), 4)


@pytest.mark.parametrize(
    ("context", "batch_size", "words"),
    [(0, 2, "context 0: expected at least 1"), (4, 0, "batch size 0: expected at")],
)
def test_sizes_of_windows_that_cannot_be(context: int, batch_size: int, words: str) -> None:
    text = _text("bytes")
    with pytest.raises(ConfigError, match=words):
        token_loss(Guess(256), text, text.valid, context, batch_size)


@pytest.mark.parametrize(
    "scores",
    [
        lambda x: torch.zeros(*x.shape, 255),
        lambda x: torch.zeros(len(x), 256),
        lambda x: torch.zeros(1, 4, 256),
    ],
)
def test_scores_of_another_shape_are_refused(scores: Any) -> None:
    class Wrong(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return scores(x)

    text = _text("bytes")
    with pytest.raises(
        ShapeError, match=r"expected \(2, 4\) and at least 256, the tokens of shakespeare-50k"
    ):
        token_loss(Wrong(), text, text.valid[:9], 4)

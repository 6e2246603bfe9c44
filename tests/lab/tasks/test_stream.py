"""Streams of unrolls: the order of characters, the ends of episodes, and resuming; windows that are drawn."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgrad.core import ConfigError, ShapeError
from synthgrad.lab.tasks import TextStream, TokenWindows, Unroll


def _episode(stream: TextStream, unroll: int) -> list[Unroll]:
    taken = [stream.next_unroll(unroll)]
    while not taken[-1].last:
        taken.append(stream.next_unroll(unroll))
    return taken


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 120), st.data())
def test_rows_are_contiguous_and_complete(num_tokens: int, data: st.DataObject) -> None:
    batch_size = data.draw(st.integers(1, num_tokens - 1))
    length = (num_tokens - 1) // batch_size
    unroll = data.draw(st.integers(1, length))
    tokens = torch.randperm(num_tokens)
    stream = TextStream(tokens, batch_size)
    taken = _episode(stream, unroll)
    x, y = (torch.cat([getattr(u, part) for u in taken], 1) for part in ("x", "y"))
    assert [u.first for u in taken] == [True] + [False] * (len(taken) - 1)
    assert len(taken) == length // unroll
    read = length - length % unroll
    for row in range(batch_size):
        start = row * length
        assert x[row].tolist() == tokens[start : start + read].tolist()
        assert y[row].tolist() == tokens[start + 1 : start + 1 + read].tolist()
    if read == length:  # every character but the first, once, save fewer than a batch at the end
        assert y.flatten().tolist() == tokens[1 : batch_size * length + 1].tolist()
    assert num_tokens - 1 - batch_size * length < batch_size


def test_after_its_end_the_stream_begins_anew() -> None:
    stream = TextStream(torch.arange(23), 2)  # rows of 11
    first, second = _episode(stream, 4), _episode(stream, 4)
    assert len(first) == 2
    assert stream.episode == 2
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.x, b.x)
        assert (a.first, a.last) == (b.first, b.last)


def test_unroll_of_a_whole_row_is_first_and_last() -> None:
    taken = TextStream(torch.arange(10), 3).next_unroll(3)
    assert (taken.first, taken.last, taken.x.tolist()) == (True, True, [[0, 1, 2], [3, 4, 5], [6, 7, 8]])


def test_a_longer_unroll_that_does_not_fit_begins_anew() -> None:
    stream = TextStream(torch.arange(11), 1)
    assert not stream.next_unroll(5).last  # another five would fit
    taken = stream.next_unroll(6)
    assert (taken.first, taken.x[0].tolist(), stream.episode) == (True, list(range(6)), 2)


def test_what_was_said_to_be_last_is_last_for_shorter_unrolls_too() -> None:
    stream = TextStream(torch.arange(11), 1)
    assert stream.next_unroll(6).last  # four are left, but the credit of its end was zero
    taken = stream.next_unroll(4)
    assert (taken.first, taken.x[0, 0].item()) == (True, 0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_what_is_given_is_int64(dtype: torch.dtype) -> None:
    taken = TextStream(torch.arange(200).to(dtype), 2).next_unroll(5)
    assert (taken.x.dtype, taken.y.dtype) == (torch.int64, torch.int64)
    assert taken.y[1].tolist() == [100, 101, 102, 103, 104]


def test_rows_are_views_of_the_text() -> None:
    tokens = torch.arange(101)
    stream = TextStream(tokens, 4)
    tokens[26] = -1  # changed behind the stream's back: nothing was copied
    assert stream.next_unroll(3).x[1].tolist() == [25, -1, 27]


def test_restored_stream_goes_on_where_it_was() -> None:
    tokens = torch.randperm(200)
    stream = TextStream(tokens, 3)
    for _ in range(11):
        stream.next_unroll(9)
    state = json.loads(json.dumps(stream.state_dict()))  # plain numbers, whatever a snapshot is written with
    other = TextStream(tokens, 3)
    other.load_state_dict(state)
    assert (other.position, other.episode) == (stream.position, stream.episode) == (36, 1)
    for _ in range(20):
        a, b = stream.next_unroll(9), other.next_unroll(9)
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
        assert a[2:] == b[2:]


@pytest.mark.parametrize(("num_tokens", "batch_size"), [(200, 4), (100, 3)])
def test_state_of_other_rows_is_refused(num_tokens: int, batch_size: int) -> None:
    state = TextStream(torch.arange(200), 3).state_dict()
    with pytest.raises(ConfigError, match="of 3 rows of 66 characters, expected"):
        TextStream(torch.arange(num_tokens), batch_size).load_state_dict(state)


@pytest.mark.parametrize("batch_size", [0, -1, 10])
def test_bad_batch_size_is_refused(batch_size: int) -> None:
    with pytest.raises(ConfigError, match=f"batch size {batch_size}: expected 1 to 9 rows for 10 characters"):
        TextStream(torch.arange(10), batch_size)


@pytest.mark.parametrize("unroll", [0, -1, 5])
def test_bad_unroll_is_refused(unroll: int) -> None:
    with pytest.raises(ConfigError, match=rf"unroll of {unroll}: expected 1 to 4.* 2 rows"):
        TextStream(torch.arange(10), 2).next_unroll(unroll)


@pytest.mark.parametrize(
    "tokens", [torch.zeros(10), torch.zeros(2, 5, dtype=torch.int64)], ids=["float", "2-d"]
)
def test_what_is_no_row_of_integers_is_refused(tokens: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match=r"expected \(N,\) of integers"):
        TextStream(tokens, 2)


# Windows that are drawn


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 60), st.integers(1, 5), st.integers(0, 2**40), st.integers(0, 2**40), st.data())
def test_a_window_is_a_piece_of_the_text(
    num_tokens: int, batch_size: int, seed: int, step: int, data: st.DataObject
) -> None:
    context = data.draw(st.integers(1, num_tokens - 1))
    tokens = torch.randperm(num_tokens)
    x, y = TokenWindows(tokens, context, batch_size, seed).batch(step)
    assert x.shape == y.shape == (batch_size, context)
    assert x.dtype == y.dtype == torch.int64
    for row in range(batch_size):
        start = tokens.tolist().index(int(x[row, 0]))
        assert x[row].tolist() == tokens[start : start + context].tolist()
        assert y[row].tolist() == tokens[start + 1 : start + 1 + context].tolist()


def test_a_batch_depends_on_seed_and_number_alone() -> None:
    tokens = torch.arange(10_000)
    windows = TokenWindows(tokens, 8, 16, seed=3)
    in_order = [windows.batch(step)[0] for step in range(20)]
    resumed = TokenWindows(tokens, 8, 16, seed=3)
    for step in (19, 4, 0):  # in any order, and without those before
        assert torch.equal(resumed.batch(step)[0], in_order[step])
    starts = {tuple(x[:, 0].tolist()) for x in in_order}
    assert len(starts) == 20
    others = [TokenWindows(tokens, 8, 16, seed).batch(step)[0] for seed, step in ((4, 0), (0, 3), (4, 2))]
    assert not {tuple(x[:, 0].tolist()) for x in others} & starts


def test_drawing_leaves_the_global_generator_and_is_not_led_by_it() -> None:
    windows = TokenWindows(torch.arange(1000), 4, 8, seed=0)
    torch.manual_seed(1)
    first = windows.batch(5)[0]
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(windows.batch(5)[0], first)


def test_every_window_is_drawn_as_often_as_any_other() -> None:
    windows = TokenWindows(torch.arange(12), 3, 50, seed=0)  # windows that begin at 0 to 8
    drawn = torch.cat([windows.batch(step)[0][:, 0] for step in range(180)])
    counts = torch.bincount(drawn)
    assert len(counts) == 9
    assert (counts - 1000).abs().max() < 150  # five standard deviations


def test_a_text_of_one_window_has_that_window() -> None:
    x, y = TokenWindows(torch.arange(5, dtype=torch.uint8), 4, 2, seed=0).batch(0)
    assert x.tolist() == [[0, 1, 2, 3]] * 2
    assert y.tolist() == [[1, 2, 3, 4]] * 2


@pytest.mark.parametrize("num_tokens", [0, 1, 8])
def test_text_shorter_than_a_window_is_refused(num_tokens: int) -> None:
    with pytest.raises(
        ConfigError, match=f"context of 8: expected 1 to .* for a text of {num_tokens} tokens"
    ):
        TokenWindows(torch.arange(num_tokens), 8, 2, seed=0)


@pytest.mark.parametrize(
    ("context", "batch_size", "seed", "words"),
    [
        (0, 2, 0, "context 0: expected at least 1"),
        (4, 0, 0, "batch size 0: expected at least 1"),
        (4, 2, -1, "seed -1: expected at least 0"),
    ],
)
def test_numbers_of_windows_that_cannot_be(context: int, batch_size: int, seed: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TokenWindows(torch.arange(20), context, batch_size, seed)


def test_windows_of_what_is_no_row_of_integers_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected \(N,\) of integers"):
        TokenWindows(torch.zeros(2, 5), 2, 1, seed=0)

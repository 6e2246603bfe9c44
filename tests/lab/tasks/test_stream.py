"""Streams of unrolls: the order of characters, the ends of episodes, and resuming."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgrad.core import ConfigError, ShapeError
from synthgrad.lab.tasks import TextStream, Unroll


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

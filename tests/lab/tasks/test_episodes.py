"""Rows of episodes: every episode is complete and in order, and rows are at different steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from synthgrad.core import ConfigError
from synthgrad.lab.tasks import IGNORED, CopyEpisodes, EpisodeStream


def stream(rows: int = 6, spread: int = 3, seed: int = 0, length: int = 2) -> EpisodeStream:
    return EpisodeStream(CopyEpisodes(symbols=3, seed=seed), rows, lambda: (length, 1), spread)


def read(found: EpisodeStream, num: int, unroll: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    parts = [found.next_unroll(unroll) for _ in range(num)]
    return (
        torch.cat([p.x for p in parts], 1),
        torch.cat([p.y for p in parts], 1),
        torch.stack([torch.as_tensor(p.fresh).expand(len(p.x)) for p in parts], 1),
        torch.stack([torch.as_tensor(p.ended).expand(len(p.x)) for p in parts], 1),
    )


@pytest.mark.parametrize("unroll", [1, 2, 3, 7, 20])
def test_every_row_is_episode_after_episode(unroll: int) -> None:
    task_length = 7  # start, two characters, go, two to write, stop
    x, y, fresh, ended = read(stream(), 30, unroll)
    per_episode = -(-task_length // unroll)
    for row in range(6):
        wait = row % 3
        begins = [0, *range(wait + per_episode, 30, per_episode)]
        assert fresh[row].nonzero().flatten().tolist() == begins
        ends = range(wait + per_episode - 1, 30, per_episode)
        assert ended[row].nonzero().flatten().tolist() == list(ends)
        for end in ends:
            at = (end + 1 - per_episode) * unroll
            tokens = x[row, at : at + per_episode * unroll].argmax(1)
            asked = y[row, at : at + per_episode * unroll]
            assert tokens[0] == 3  # start
            assert tokens[3] == 4  # go
            assert (tokens[1:3] < 3).all()
            assert torch.equal(asked[4:6], tokens[1:3])
            assert asked[6] == 3  # stop
            assert (asked != IGNORED).sum() == 3
            assert (tokens[4:] == 5).all()  # blanks, behind the end too


def test_rows_begin_one_unroll_after_the_other() -> None:
    first = stream(rows=5, spread=4)
    starts = (first.next_unroll(3).x.argmax(2)[:, 0] == 3).tolist()
    assert starts == [True, False, False, False, True]
    together = stream(rows=5, spread=1)
    assert (together.next_unroll(3).x.argmax(2)[:, 0] == 3).all()


def test_what_holds_for_all_rows_or_none_is_one_truth() -> None:
    found = stream(rows=2, spread=1)
    parts = [found.next_unroll(3) for _ in range(4)]
    assert [p.fresh for p in parts] == [True, False, False, True]
    assert [p.ended for p in parts] == [False, False, True, False]


def test_what_is_left_is_told() -> None:
    found = stream(rows=2, spread=2)
    left = torch.stack([found.next_unroll(3).steps_left for _ in range(5)], 1)
    assert left.tolist() == [[4, 1, 0, 4, 1], [7, 4, 1, 0, 4]]


def test_it_says_whether_anything_is_asked_for() -> None:
    for spread in (1, 3):
        found = stream(spread=spread)
        parts = [found.next_unroll(2) for _ in range(12)]
        asked = [bool((p.y != IGNORED).any()) for p in parts]
        assert [p.has_targets for p in parts] == asked
        assert asked[:2] == [False, False]
        assert all(asked[4:]) == (spread == 3)


def test_lengths_change_where_a_row_begins_anew() -> None:
    size = [(1, 1)]
    task = CopyEpisodes(repeat=True)
    found = EpisodeStream(task, 2, lambda: size[0], spread=2)
    assert found.next_unroll(3).task_lengths.tolist() == [4, 4]
    size[0] = (3, 2)
    parts = [found.next_unroll(3) for _ in range(3)]
    assert [p.task_lengths.tolist() for p in parts] == [[4, 4], [9, 4], [9, 9]]
    assert [p.ended_rows.tolist() for p in parts] == [[0], [1], []]
    assert parts[1].x.shape == (2, 3, task.inputs)


def test_unrolls_may_grow() -> None:
    found = stream()
    found.next_unroll(1)
    assert found.next_unroll(50).x.shape == (6, 50, 6)


def test_a_stream_goes_on_where_it_stood() -> None:
    one, two = stream(), stream(seed=5)
    for _ in range(4):
        one.next_unroll(3)
    state, generator = one.state_dict(), one.episodes.generator.get_state()
    expected = read(one, 8)
    two.load_state_dict(state)
    two.episodes.generator.set_state(generator)
    for a, b in zip(read(two, 8), expected, strict=True):
        assert torch.equal(a, b)


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(ConfigError, match="rows=0"):
        stream(rows=0)
    with pytest.raises(ConfigError, match="spread=0"):
        stream(spread=0)
    with pytest.raises(ConfigError, match="unroll of 0"):
        stream().next_unroll(0)
    with pytest.raises(ConfigError, match="6 rows, expected 2"):
        stream(rows=2).load_state_dict(stream().state_dict())

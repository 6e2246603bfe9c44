"""Copy and Repeat Copy: the content of episodes, and the steps of the curriculum."""

from __future__ import annotations

import pytest
import torch

from synthgrad.core import ConfigError
from synthgrad.lab.tasks import IGNORED, CopyEpisodes, Curriculum


def test_an_episode_of_copy() -> None:
    task = CopyEpisodes(symbols=3)
    episode = task.draw(4, length=2)
    start, blank = 3, 5
    assert (task.inputs, task.classes) == (6, 4)
    assert episode.x.shape == (4, 7, 6)
    assert torch.equal(episode.x.sum(2), torch.ones(4, 7))  # one plane at every step
    tokens = episode.x.argmax(2)
    assert torch.equal(tokens[:, 0], torch.full((4,), start))
    assert torch.equal(tokens[:, 3], torch.full((4,), 4))  # go
    assert (tokens[:, 4:] == blank).all()
    assert (tokens[:, 1:3] < 3).all()
    assert (episode.y[:, :4] == IGNORED).all()
    assert torch.equal(episode.y[:, 4:6], tokens[:, 1:3])
    assert (episode.y[:, 6] == 3).all()  # stop
    assert episode.first == 4


def test_an_episode_of_repeat_copy() -> None:
    task = CopyEpisodes(symbols=2, repeat=True)
    episode = task.draw(3, length=2, count=3)
    assert episode.x.shape == (3, 1 + 2 + 1 + 6 + 1, task.inputs)
    tokens = episode.x[..., :-1].argmax(2)
    assert torch.equal(episode.y[:, 4:10], tokens[:, 1:3].repeat(1, 3))
    assert (episode.y[:, 10] == 2).all()
    count = episode.x[..., -1]
    assert torch.equal(count[:, 3], torch.full((3,), 0.3))
    assert count.sum() == pytest.approx(0.9)  # given at the go sign and nowhere else


def test_draws_depend_on_the_seed_alone() -> None:
    first, second, other = (CopyEpisodes(seed=s).draw(8, 5).x for s in (1, 1, 2))
    torch.rand(3)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_what_cannot_be_drawn_is_told() -> None:
    with pytest.raises(ConfigError, match="symbols=1"):
        CopyEpisodes(symbols=1)
    with pytest.raises(ConfigError, match="length 0"):
        CopyEpisodes().draw(4, 0)
    with pytest.raises(ConfigError, match="count 2: expected 1, because this is the Copy task"):
        CopyEpisodes().draw(4, 3, 2)


def test_copy_grows_by_a_character_when_it_is_solved() -> None:
    curriculum = Curriculum(smooth=3)
    assert [curriculum.update(0.1) for _ in range(3)] == [False, False, True]
    assert (curriculum.length, curriculum.longest_solved, curriculum.task_length) == (2, 4, 5)
    assert [curriculum.update(b) for b in (0.1, 0.4, 0.1)] == [False, False, False]  # mean 0.2
    assert [curriculum.update(b) for b in (0.1, 0.1)] == [False, True]  # the last three
    assert curriculum.longest_solved == 5


def test_repeat_copy_grows_in_turn() -> None:
    curriculum = Curriculum(repeat=True, smooth=1)
    seen = []
    for _ in range(4):
        assert curriculum.update(0.0)
        seen.append((curriculum.length, curriculum.count, curriculum.longest_solved))
    assert seen == [(2, 1, 4), (2, 2, 5), (3, 2, 7), (3, 3, 9)]


def test_a_curriculum_goes_on_where_it_stood() -> None:
    one, two = Curriculum(smooth=2), Curriculum(smooth=2)
    for bits in (0.1, 0.1, 0.1):
        one.update(bits)
    two.load_state_dict(one.state_dict())
    assert one.update(0.1) is two.update(0.1) is True
    assert one == two

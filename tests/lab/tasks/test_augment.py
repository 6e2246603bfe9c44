"""Flips and shifts: what they do to an image, and that they depend on the seed alone."""

from __future__ import annotations

import pytest
import torch

from synthgrad.lab.tasks import Augment
from synthgrad.lab.tasks.augment import flip_and_shift

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def by_hand(image: torch.Tensor, flip: bool, down: int, right: int) -> torch.Tensor:
    """Return one image ``(C, Y, X)`` flipped and shifted, pixel by pixel."""
    _, height, width = image.shape
    source = image.flip(2) if flip else image
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                out[:, y, x] = source[:, y - down, x - right]
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_flipped_then_shifted_and_keep_their_layout(
    layout: torch.memory_format, channels: int
) -> None:
    x = (torch.rand(40, channels, 5, 7) + 1).to(memory_format=layout)
    flips = torch.rand(40) < 0.5
    shifts = torch.randint(-4, 5, (2, 40))
    moved = flip_and_shift(x, flips, shifts)
    for k in range(40):
        expected = by_hand(x[k], bool(flips[k]), int(shifts[0, k]), int(shifts[1, k]))
        assert torch.equal(moved[k], expected)
    assert moved.is_contiguous(memory_format=layout)


def test_every_shift_is_drawn_and_half_of_the_images_are_flipped() -> None:
    x = torch.zeros(4000, 1, 9, 9)
    x[:, 0, 4, 4], x[:, 0, 4, 3] = 2.0, 1.0  # a mark, and which side of it is left
    # Frames wide enough that no mark is lost.
    moved = Augment(0, flip=True)(torch.nn.functional.pad(x, (4, 4, 4, 4)))
    found = (moved == 2).nonzero()
    assert len(found) == 4000
    left = [bool(moved[k, 0, y, c - 1] == 1) for k, _, y, c in found.tolist()]
    assert 0.45 < sum(left) / 4000 < 0.55
    places = {(y, c) for _, _, y, c in found.tolist()}  # the mark lies in the middle: a flip leaves it there
    assert places == {(y, c) for y in range(4, 13) for c in range(4, 13)}


def test_digits_are_not_flipped_but_shifted_alike() -> None:
    x = torch.rand(30, 1, 8, 8) + 1
    flipped, straight = Augment(3, flip=True)(x), Augment(3, flip=False)(x)
    same = [torch.equal(a, b) for a, b in zip(flipped, straight, strict=True)]
    assert 0 < sum(same) < 30
    assert torch.equal((flipped == 0).any(3), (straight == 0).any(3))


def test_draws_depend_on_the_seed_and_go_on_from_a_state() -> None:
    x = torch.rand(20, 3, 8, 8)
    first, second = Augment(5, flip=True), Augment(5, flip=True)
    assert torch.equal(first(x), second(x))
    assert not torch.equal(Augment(6, flip=True)(x), Augment(5, flip=True)(x))
    state = first.state_dict()
    after = first(x)
    resumed = Augment(0, flip=True)
    resumed.load_state_dict(state)
    assert torch.equal(resumed(x), after)

"""Labelled data as tensors, and batches drawn from them."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgrad.core import ConfigError, DataError
from synthgrad.lab.tasks import LabelledData, Split, draw_batches
from synthgrad.lab.tasks.images import to_split

CPU = torch.device("cpu")


def _batches(num_examples: int, batch_size: int, seed: int, n: int) -> list[list[int]]:
    return [ids.tolist() for ids in islice(draw_batches(num_examples, batch_size, seed, CPU), n)]


def _images(n: int = 20) -> LabelledData:
    x = torch.arange(n, dtype=torch.float32).reshape(n, 1, 1, 1) / n
    split = Split(x, torch.arange(n) % 3)
    return LabelledData("toy", split, Split(x[:4] + 5, torch.zeros(4, dtype=torch.int64)), 3, "0" * 64)


def test_same_seed_same_batches() -> None:
    assert _batches(100, 10, 3, 25) == _batches(100, 10, 3, 25)


def test_other_seed_other_batches() -> None:
    assert _batches(100, 10, 3, 10) != _batches(100, 10, 4, 10)


def test_batches_do_not_touch_the_global_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    _batches(100, 10, 3, 25)
    assert torch.equal(torch.get_rng_state(), before)


def test_global_seed_does_not_touch_batches() -> None:
    torch.manual_seed(1)
    first = _batches(50, 5, 0, 10)
    torch.manual_seed(2)
    assert _batches(50, 5, 0, 10) == first


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.data())
def test_every_epoch_gives_every_example_at_most_once(num_examples: int, data: st.DataObject) -> None:
    batch_size = data.draw(st.integers(1, num_examples))
    per_epoch = num_examples // batch_size
    batches = _batches(num_examples, batch_size, 0, 2 * per_epoch)
    assert {len(batch) for batch in batches} == {batch_size}
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        ids = [i for batch in epoch for i in batch]
        assert len(set(ids)) == len(ids) == per_epoch * batch_size
        assert set(ids) <= set(range(num_examples))


def test_an_epoch_without_rest_covers_all() -> None:
    ids = [i for batch in _batches(40, 8, 0, 5) for i in batch]
    assert sorted(ids) == list(range(40))


def test_epochs_are_shuffled_anew() -> None:
    batches = _batches(40, 8, 0, 10)
    assert batches[:5] != batches[5:]
    assert batches[0] != list(range(8))


def test_rest_of_an_epoch_is_not_always_the_same() -> None:
    left_out: Counter[int] = Counter()
    batches = _batches(10, 4, 0, 40)
    for k in range(0, 40, 2):
        left_out.update(set(range(10)) - {*batches[k], *batches[k + 1]})
    assert len(left_out) == 10


def test_indices_are_int64() -> None:
    assert next(draw_batches(10, 4, 0, CPU)).dtype == torch.int64


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_bad_batch_size_is_refused(batch_size: int) -> None:
    with pytest.raises(ConfigError, match=f"batch size {batch_size}: expected 1 to 10"):
        next(draw_batches(10, batch_size, 0, CPU))


def test_hold_out_is_disjoint_and_complete() -> None:
    data = _images()
    held = data.hold_out(6)
    kept, out = set(held.train.x.flatten().tolist()), set(held.test.x.flatten().tolist())
    assert (len(held.train), len(held.test)) == (14, 6)
    assert not kept & out
    assert kept | out == set(data.train.x.flatten().tolist())


def test_hold_out_keeps_labels_with_their_images() -> None:
    held = _images().hold_out(6)
    for split in (held.train, held.test):
        assert ((split.x.flatten() * 20).round().long() % 3).tolist() == split.y.tolist()


def test_hold_out_drops_the_test_part() -> None:
    assert float(_images().hold_out(6).test.x.max()) < 5


def test_hold_out_is_repeatable() -> None:
    torch.manual_seed(1)
    first = _images().hold_out(6)
    torch.manual_seed(2)
    assert torch.equal(_images().hold_out(6).test.x, first.test.x)


def test_hold_out_leaves_the_original_alone() -> None:
    data = _images()
    data.hold_out(6)
    assert (len(data.train), len(data.test)) == (20, 4)


@pytest.mark.parametrize("n", [0, -1, 20, 21])
def test_hold_out_of_nothing_or_all_is_refused(n: int) -> None:
    with pytest.raises(ConfigError, match=f"hold_out={n}: expected 1 to 19 of 20"):
        _images().hold_out(n)


def test_to_split_scales_and_adds_a_channel() -> None:
    split = to_split(np.array([[[0, 51], [102, 255]]], np.uint8), np.array([1], np.uint8), 2, "toy")
    torch.testing.assert_close(split.x, torch.tensor([[[[0.0, 0.2], [0.4, 1.0]]]]))
    assert (split.y.dtype, split.y.tolist(), len(split)) == (torch.int64, [1], 1)


def test_to_split_keeps_channels() -> None:
    assert to_split(np.zeros((2, 3, 4, 4), np.uint8), np.zeros(2, np.int64), 2, "toy").x.shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (0, [], "toy: the data set is empty"),
        (2, [0], "2 images but 1 labels"),
        (1, [5], "label 5"),
        (1, [-1], "label -1"),
    ],
    ids=["empty", "lengths", "too high", "negative"],
)
def test_to_split_refuses(images: int, labels: list[int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        to_split(np.zeros((images, 2, 2), np.uint8), np.array(labels, np.int64), 5, "toy")

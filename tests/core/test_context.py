from __future__ import annotations

import threading

import pytest
import torch

from synthgrad.core import context, current


def test_blocks_nest_and_end_with_an_error() -> None:
    assert current() is None
    a, b = torch.tensor([1]), torch.tensor([2])
    with context(a, step=3):
        with context(b):
            assert current().context is b  # type: ignore[union-attr]
        with pytest.raises(KeyError), context(b):
            raise KeyError
        assert current().context is a  # type: ignore[union-attr]
        assert current().step == 3  # type: ignore[union-attr]
    assert current() is None


def test_threads_do_not_see_each_others_context() -> None:
    seen: list[object] = []
    with context(torch.tensor([1])):
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
    assert seen == [None]

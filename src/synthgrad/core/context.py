"""The context of the batch at hand, for training loops that cannot pass a keyword."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

from torch import Tensor

from .errors import ContextError
from .given import brief
from .rule import Info

__all__ = ["context", "current"]


class _Current(threading.local):
    # Not a ContextVar: torch.compile(fullgraph=True) traces a thread-local, not ContextVar.get.
    info: Info | None = None


_CURRENT = _Current()


@contextmanager
def context(
    c: Tensor | None = None, *, ids: Tensor | None = None, step: int | None = None
) -> Generator[None]:
    """Tell every decoupled network that runs inside this block about the batch at hand.

    Args:
        c: context of the rules (DNI §2): class indices ``(B,)`` int64, or any tensor of ``B`` rows.
        ids: ``(B,)`` int64, which examples these are.
        step: number of the batch, counted from 0.

    Raises:
        ContextError: if context or ids are no tensor.

    >>> import torch
    >>> with context(torch.tensor([1, 2])):
    ...     current().context.tolist()
    [1, 2]
    """
    for name, value in (("the context", c), ("ids", ids)):
        if value is not None and not isinstance(value, Tensor):
            raise ContextError(
                f"{name}: got {brief(value)}, expected a tensor with a row for each example; convert it by torch.as_tensor"
            )
    before = _CURRENT.info
    _CURRENT.info = Info(context=c, ids=ids, step=step)
    try:
        yield
    finally:
        _CURRENT.info = before


def current() -> Info | None:
    """Return what the innermost `context` block of this thread said, or None outside of one."""
    return _CURRENT.info

"""Marks a test of the real data, which only some machines have."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pytest

__all__ = ["data_folder", "needs_data"]

Test = TypeVar("Test", bound=Callable[..., Any])

#: As it was at the beginning: tests without a network take it out of their environment.
_FOLDER = os.environ.get("SYNTHGRAD_DATA", "")


def data_folder() -> Path:
    """Return the folder of the real data; only for tests that `needs_data` marks."""
    return Path(_FOLDER)


def needs_data(*paths: str) -> Callable[[Test], Test]:
    """Mark a test that reads files or folders of the real data: it skips where one is missing."""
    skip = pytest.mark.skipif(
        not _has(paths), reason=f"needs SYNTHGRAD_DATA to name a folder that holds {' and '.join(paths)}"
    )
    return lambda test: pytest.mark.data(skip(test))


def _has(paths: Iterable[str]) -> bool:
    return bool(_FOLDER) and all((Path(_FOLDER) / path).exists() for path in paths)

"""A comparison that many tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.helpers import SMALL, call


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small comparison, to be looked at only."""
    out = tmp_path_factory.mktemp("done")
    assert call(*SMALL, "--out", out, "--quiet") == 0
    return out

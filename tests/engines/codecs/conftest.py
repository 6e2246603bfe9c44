"""Links to send over: two stages in memory."""

from __future__ import annotations

import pytest

from tests.engines.stages.places import InMemory


@pytest.fixture
def two() -> InMemory:
    return InMemory(2)

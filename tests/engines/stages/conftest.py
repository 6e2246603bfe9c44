"""Processes that all tests share: to start them takes longer than most tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.stages.processes import Processes


@pytest.fixture(scope="session")
def two() -> Iterator[Processes]:
    with Processes(2) as found:
        yield found


@pytest.fixture(scope="session")
def three() -> Iterator[Processes]:
    with Processes(3) as found:
        yield found


@pytest.fixture(scope="session")
def four() -> Iterator[Processes]:
    with Processes(4) as found:
        yield found

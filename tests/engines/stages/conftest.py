"""Ranks in memory, and processes that all tests of this folder share: to start these takes longer than most tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.stages.places import InMemory
from tests.engines.stages.processes import Processes


@pytest.fixture(scope="package")
def two() -> InMemory:
    return InMemory(2)


@pytest.fixture(scope="package")
def three() -> InMemory:
    return InMemory(3)


@pytest.fixture(scope="package")
def four() -> InMemory:
    return InMemory(4)


@pytest.fixture(scope="package")
def two_processes() -> Iterator[Processes]:
    with Processes(2) as found:
        yield found


@pytest.fixture(scope="package")
def four_processes() -> Iterator[Processes]:
    with Processes(4) as found:
        yield found

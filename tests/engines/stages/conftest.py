"""Processes that all tests of this folder share: to start them takes longer than most tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engines.stages.processes import Processes


@pytest.fixture(scope="package")
def two() -> Iterator[Processes]:
    with Processes(2) as found:
        yield found


@pytest.fixture(scope="package")
def three() -> Iterator[Processes]:
    with Processes(3) as found:
        yield found


@pytest.fixture(scope="package")
def four() -> Iterator[Processes]:
    with Processes(4) as found:
        yield found

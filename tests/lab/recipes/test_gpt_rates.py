"""The learning rates of the rows of `gpt` are those that the committed search found best."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthgrad.lab.recipes import experiment_named
from synthgrad.lab.recipes._experiment import make_run
from synthgrad.lab.recipes._gpt_rows import ROWS, Row
from synthgrad.lab.records import FILE, Record, read
from synthgrad.lab.report.labels import row_label
from synthgrad.lab.report.rates import chosen_rates
from synthgrad.lab.training.train import empty_record

RESULTS = Path(__file__).parents[3] / "results"


def _names(record: Record) -> tuple[str, float | None]:
    return row_label(record), record.config.lr


def _planned(row: Row, rate: float) -> Record:
    """Return the record of a row's run in the search, without results."""
    (group,) = experiment_named("gpt_search").tiers["quick"]
    return empty_record(make_run("gpt_search", "quick", 100, group, row.variant(rate)))


def test_rows_have_names_of_their_own() -> None:
    assert len({row_label(_planned(row, row.rate)) for row in ROWS}) == len(ROWS)


@pytest.fixture(scope="module")
def search() -> list[Record]:
    """The records of the latest search."""
    folders = sorted(folder for folder in RESULTS.glob("gpt_search/*") if (folder / FILE).exists())
    if not folders:
        pytest.skip("needs results/gpt_search, the record of the search of learning rates")
    records, problems = read(folders[-1] / FILE)
    assert problems == []
    return records


def test_every_row_was_searched_at_all_of_its_rates(search: list[Record]) -> None:
    found = {_names(record) for record in search}
    planned = {_names(_planned(row, rate)) for row in ROWS for rate in row.rates}
    assert planned - found == set()


def test_every_row_has_the_rate_with_the_fewest_validation_bits(search: list[Record]) -> None:
    best = chosen_rates(search)
    assert {row_label(_planned(row, row.rate)): row.rate for row in ROWS} == {
        name: best.get(name) for name in (row_label(_planned(row, row.rate)) for row in ROWS)
    }

"""Published figures: the right ones, beside what they may stand beside."""

from __future__ import annotations

from typing import Any

import pytest

from synthgrad.lab.records import Cell
from synthgrad.lab.report.published import errors_pct
from synthgrad.lab.report.trainings import table_sheet
from tests.lab.report.helpers import cells, record, tables

CELL = {"data": "mnist", "arch": "fcn", "layers": 4, "width": 256}


def _published(**changes: Any) -> float | None:
    (table,) = tables([record(**({"method": "cdni"} | changes))])
    said = cells(table_sheet(table)).get("published")
    return None if said is None else float(said.removesuffix(" %"))


def _notes(**changes: Any) -> str:
    sheet = table_sheet(tables([record(**changes)])[0])
    return "\n".join((*sheet.notes, *sheet.remarks))


@pytest.mark.parametrize(
    ("data", "arch", "width", "layers", "errors"),
    [
        ("mnist", "fcn", 256, 3, (9.3, 2.0, 1.9, 2.2)),
        ("mnist", "fcn", 256, 4, (12.6, 1.8, 2.2, 1.9)),
        ("mnist", "fcn", 256, 5, (16.2, 1.8, 3.4, 1.7)),
        ("mnist", "fcn", 256, 6, (21.4, 1.8, 4.3, 1.6)),
        ("mnist", "cnn", 64, 3, (0.9, 0.8, 0.9, 1.0)),
        ("mnist", "cnn", 64, 4, (2.8, 0.6, 0.7, 0.8)),
        ("cifar10", "fcn", 1000, 3, (54.9, 43.5, 42.5, 48.5)),
        ("cifar10", "fcn", 1000, 4, (57.2, 43.0, 45.0, 45.1)),
        ("cifar10", "fcn", 1000, 5, (59.6, 41.7, 46.9, 43.5)),
        ("cifar10", "fcn", 1000, 6, (61.9, 42.0, 49.7, 46.8)),
        ("cifar10", "cnn", 128, 3, (28.7, 17.9, 19.5, 19.0)),
        ("cifar10", "cnn", 128, 4, (38.1, 15.7, 19.5, 16.4)),
    ],
)
def test_table_1_of_the_paper(
    data: str, arch: str, width: int, layers: int, errors: tuple[float, ...]
) -> None:
    found = errors_pct(Cell({"data": data, "arch": arch, "width": width, "layers": layers}))
    assert tuple(found[m] for m in ("no_bprop", "backprop", "dni", "cdni")) == errors


def test_a_convolutional_cell_need_not_name_its_filters() -> None:
    assert errors_pct(Cell({"data": "mnist", "arch": "cnn", "layers": 4}))["dni"] == 0.7
    assert errors_pct(Cell({"data": "mnist", "arch": "fcn", "layers": 4})) == {}


@pytest.mark.parametrize(
    "change",
    [{"data": "mnist-10k"}, {"data": "cifar10"}, {"width": 128}, {"layers": 7}, {"arch": "mine:net"}],
    ids=lambda change: next(iter(change)),
)
def test_what_the_paper_did_not_train_has_no_figure(change: dict[str, Any]) -> None:
    assert _published(cell=CELL | change) is None


def test_every_method_has_its_own_figure() -> None:
    assert [_published(method=m) for m in ("no_bprop", "backprop", "dni", "cdni")] == [12.6, 1.8, 2.2, 1.9]
    assert _published(method="stale") is None


def test_variants_of_a_method() -> None:
    assert _published(cell=CELL | {"engine": "plain", "update_prob": 1.0, "at": []}) == 1.9
    assert _published(cell=CELL | {"update_prob": 0.2}) is None
    assert _published(cell=CELL | {"at": ["layer2"]}) is None


def test_a_test_error_does_not_stand_beside_validation_errors() -> None:
    assert _published(config={"hold_out": 5000}, metrics={"val_error_pct": 3.0}) is None


def test_the_schedule_is_said_where_figures_are_shown() -> None:
    assert "Jaderberg et al. 2016, Table 1" in _notes()
    assert "500,000 steps, Adam 3e-5" in _notes()
    assert "500,000 steps, Adam 3e-5" not in _notes(cell=CELL | {"width": 128})


def test_the_published_speed_is_said_of_the_network_that_was_timed() -> None:
    assert "over 3-fold faster" in _notes()
    assert "20 % of 500,000 steps" in _notes()
    assert "over 3-fold faster" not in _notes(cell=CELL | {"layers": 5})
    assert "over 3-fold faster" not in _notes(cell=CELL | {"data": "cifar10"})


def test_a_part_of_mnist_names_the_figures_of_the_whole() -> None:
    notes = _notes(cell=CELL | {"data": "mnist-10k"})
    assert "on all of mnist" in notes
    assert "no_bprop 12.6 %, backprop 1.8 %, dni 2.2 %, cdni 1.9 %" in notes


def test_complete_unlock_is_named_where_it_was_run() -> None:
    assert "about 98 %" in _notes(method="cdni_unlock")
    assert "about 98 %" not in _notes()

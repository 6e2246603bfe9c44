"""The grid of test errors over networks and methods, against cells worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synthgrad.lab.report import Sheet, write_report
from tests.lab.report.helpers import failed, grids, record, step_line


def _run(
    method: str = "backprop",
    seed: int = 0,
    error: float = 2.0,
    data: str = "mnist",
    arch: str = "fcn",
    layers: int = 4,
    width: int = 256,
    **changes: Any,
) -> dict[str, Any]:
    cell = {"data": data, "arch": arch, "layers": layers, "width": width, "update_prob": 1.0, "at": []}
    return record(method, seed, metrics={"test_error_pct": error}, **{"cell": cell, **changes})


def _grid(*records: dict[str, Any]) -> Sheet:
    (sheet,) = grids(records)
    return sheet


def _cell(sheet: Sheet, row: str, column: str) -> str:
    (line,) = [line for line in sheet.rows if line[0] == row]
    return line[sheet.headings.index(column)]


def test_rows_are_networks_and_columns_methods_in_order() -> None:
    sheet = _grid(
        _run("cdni", layers=6),
        _run(data="cifar10", arch="cnn", layers=3, width=128),
        _run("no_bprop", layers=3),
        _run(arch="cnn", layers=4, width=64),
        _run(layers=3),
        _run(data="cifar10", width=1000),
    )
    assert sheet.headings == ("data, network, layers", "settings", "backprop", "no_bprop", "cdni")
    assert [row[0] for row in sheet.rows] == [
        *("mnist fcn 3", "mnist fcn 6", "mnist cnn 4", "cifar10 fcn 4", "cifar10 cnn 3")
    ]


def test_a_cell_has_mean_half_range_runs_and_the_published_figure() -> None:
    runs = [_run("cdni", seed, error) for seed, error in enumerate((1.0, 2.0, 6.0))]
    sheet = _grid(*runs, _run(layers=3), _run("stale", layers=3))
    assert _cell(sheet, "mnist fcn 4", "cdni") == "3.00 ± 2.50 (3) [1.9]"
    assert _cell(sheet, "mnist fcn 3", "backprop") == "2.00 (1) [2.0]"
    assert _cell(sheet, "mnist fcn 3", "stale") == "2.00 (1)"
    assert _cell(sheet, "mnist fcn 4", "stale") == "—"


def test_settings_are_named_and_other_settings_are_another_row() -> None:
    config = {"lr": 3e-4, "precision": "bfloat16"}
    wide = _run(width=1000, config=config, steps=6000, batch_size=256)
    sheet = _grid(_run(), wide, _run(layers=3))
    settings = [row[1] for row in sheet.rows if row[0] == "mnist fcn 4"]
    assert settings == [
        "256 units, 30 steps of 32, lr 0.00125, float32",
        "1000 units, 6,000 steps of 256, lr 0.0003, bfloat16",
    ]


def test_filters_are_not_units_and_the_published_width_is_said() -> None:
    sheet = _grid(_run(arch="cnn", width=32), _run(arch="cnn", layers=3, width=32))
    assert sheet.rows[0][1].startswith("32 filters, ")
    assert _cell(sheet, "mnist cnn 4", "backprop") == "2.00 (1) [0.6]"
    assert "cnn 64 (mnist), 128 (cifar10)" in " ".join(sheet.notes)


def test_bad_runs_stay_as_what_they_are() -> None:
    bad = [_run("dni", seed) | {"status": "diverged", "error": "not finite"} for seed in (1, 2)]
    sheet = _grid(_run("dni", 0, 3.0), *bad, _run(layers=3), failed("no memory", "cdni"))
    assert _cell(sheet, "mnist fcn 4", "dni") == "3.00 (1), 2 diverged [2.2]"
    assert _cell(sheet, "mnist fcn 4", "cdni") == "1 failed [1.9]"
    assert sheet.bad == (False, True)
    assert sheet.failures == (
        *("mnist fcn 4, dni: diverged: not finite", "mnist fcn 4, cdni: failed: no memory")[:2],
    )


def test_the_last_record_of_a_seed_counts_whatever_the_experiment() -> None:
    sheet = _grid(_run(error=9.0), _run(error=2.0, experiment="table1"), _run(layers=3))
    assert _cell(sheet, "mnist fcn 4", "backprop") == "2.00 (1) [1.8]"


def test_two_rules_of_one_method_are_not_mixed() -> None:
    rules = [{"lr": 0.00125, "rule": {"hidden": hidden}} for hidden in ([], [8])]
    runs = [_run("dni", error=e, config=c) for e, c in zip((4.0, 3.0), rules, strict=True)]
    assert _cell(_grid(*runs, _run(layers=3)), "mnist fcn 4", "dni") == "4.00 (1); 3.00 (1) [2.2]"


def test_tiers_are_apart() -> None:
    quick, full = grids([_run(layers=n, tier=t) for t in ("quick", "full") for n in (3, 4)])
    assert (quick.title, full.title) == ("test error in % · quick", "test error in % · full")


@pytest.mark.parametrize(
    "other",
    [
        _run("cdni", cell={**_run()["cell"], "update_prob": 0.2, "layers": 3}),
        _run("cdni", cell={**_run()["cell"], "at": ["layer1"], "layers": 3}),
        _run("cdni", cell={**_run()["cell"], "engine": "plain", "layers": 3}),
        _run("cdni", cell={"data": "mnist", "arch": "my.module:factory", "layers": None}),
        _run(layers=3, config={"hold_out": 500}),
        _run(layers=3, tier="full"),
        step_line(),
        _run("cdni", error=1.0),
    ],
    ids=["p", "cuts", "plain loop", "own model", "held out", "tier", "benchmark", "same network"],
)
def test_what_makes_no_second_row(other: dict[str, Any]) -> None:
    assert grids([_run(), other]) == []


def test_the_page_shows_it_first(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, [_run(), _run("cdni"), _run(layers=3)])
    page = path.read_text(encoding="utf-8")
    assert page.index('<section id="grid-1">') < page.index('<section id="table-1">')
    assert "<td>2.00 (1) [1.9]</td>" in page
    write_report(path, [_run(), _run("cdni")])
    assert "grid-1" not in path.read_text(encoding="utf-8")

"""The tables, grids and plots of the documents: filled from records, and checked against them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.lab.report.helpers import point, record


def _write(folder: Path, name: str, *records: dict[str, Any]) -> str:
    (folder / name).mkdir(parents=True)
    (folder / name / "results.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in records), encoding="utf-8"
    )
    return name


def _cell(**changes: Any) -> dict[str, Any]:
    return {"data": "mnist", "arch": "fcn", "layers": 4, "width": 256, "update_prob": 1.0, **changes}


def _run(script: Any, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["fill_tables.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        script.main()
    return 0 if stop.value.code is None else stop.value.code  # type: ignore[return-value]


def _page(script: Any, marker: str) -> Path:
    page = script.ROOT / "docs" / "page.md"
    page.write_text(f"before\n\n{marker}\n<!-- end -->\n\nafter\n", encoding="utf-8")
    return page


def test_a_grid_of_several_folders(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = _write(tmp_path, "results/a", record(), record("cdni"))
    two = _write(tmp_path, "results/b", record(cell=_cell(layers=3)))
    page = _page(script, f"<!-- grid {one} {two} -->")
    assert _run(script, monkeypatch, "--check") == 1
    assert _run(script, monkeypatch) == 0
    text = page.read_text(encoding="utf-8")
    assert "*All rows: settings: 256 units, 30 steps of 32, lr 0.00125, float32.*" in text
    assert "| mnist fcn 3 | 2.50 (1) [2.0] | — |" in text
    assert "| mnist fcn 4 | 2.50 (1) [1.8] | 2.50 (1) [1.9] |" in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- end -->\n\nafter\n")
    assert _run(script, monkeypatch, "--check") == 0


def test_errors_of_many_networks_after_some_steps(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = {"lr": 0.00125, "rule": {"label_rate": 1.0}}
    layer = _cell(normalisation="layer", activation="gelu")
    runs = [
        record(),
        record(seed=1, curve=[point(10, test_error_pct=6.0), point(20)]),
        record("cdni", config=means),
        record("cdni", cell=layer, config=means, curve=[point(10), point(20), point(30, test_error_pct=1.0)]),
        record(cell=layer, curve=[point(10), point(30, test_error_pct=3.0)]),
    ]
    folder = _write(tmp_path, "results/many", *runs)
    page = _page(script, f"<!-- steps {folder} at=10,30 -->")
    assert _run(script, monkeypatch) == 0
    text = page.read_text(encoding="utf-8")
    assert "**compare · quick · mnist · batches of 32 · test error over steps**" in text
    assert "| network | method | 10 | 30 |" in text
    assert "| fcn 4 layers × 256, BatchNorm relu, lr 0.00125 | backprop | 5.50 ± 0.50 % | 1.67 % |" in text
    assert (
        "| fcn 4 layers × 256, LayerNorm gelu, lr 0.00125 | cdni (means of classes, rate 1) | 5.00 % |"
        in text
    )
    page = _page(script, f"<!-- steps {folder} at=30 -->")
    assert _run(script, monkeypatch) == 0
    text = page.read_text(encoding="utf-8")
    assert "test error after 30 steps**" in text
    assert "| network | backprop | cdni (means of classes, rate 1) |" in text
    assert _run(script, monkeypatch, "--check") == 0


def test_a_plot_and_its_file(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        record(experiment="sparse", steps=s, cell=_cell(update_prob=p)) for p, s in ((1.0, 30), (0.5, 60))
    ]
    page = _page(script, f"<!-- plot {_write(tmp_path, 'results/s', *runs)} sparse.svg -->")
    assert _run(script, monkeypatch) == 0
    picture = tmp_path / "docs" / "sparse.svg"
    assert "](sparse.svg)" in page.read_text(encoding="utf-8")
    assert picture.read_text(encoding="utf-8").startswith("<svg ")
    assert _run(script, monkeypatch, "--check") == 0
    picture.write_text("older", encoding="utf-8")
    capsys.readouterr()
    assert _run(script, monkeypatch, "--check") == 1
    assert "docs/sparse.svg: differs from the records" in capsys.readouterr().out


def test_a_plot_of_a_benchmark_over_depth(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        record(
            method,
            experiment="bench/layer-parallel",
            cell={"width": width, "layers": layers, "batch_size": 32, "threads": 1, "compiled": False},
            metrics={"step_ms_median": 0.1 * layers, "ratio_to_roofline": 4.0},
        )
        for method in ("backprop_eager", "layer_parallel")
        for width in (64, 256)
        for layers in (4, 16)
    ]
    folder = _write(tmp_path, "results/b", *lines)
    page = _page(script, f"<!-- plot {folder} depth.svg width=64 -->")
    assert _run(script, monkeypatch) == 0
    assert "![Time of a step over layers, width 64](depth.svg)" in page.read_text(encoding="utf-8")
    assert "step (ms)" in (tmp_path / "docs" / "depth.svg").read_text(encoding="utf-8")
    _page(script, f"<!-- plot {folder} depth.svg width=64 of=ratio_to_roofline -->")
    assert _run(script, monkeypatch) == 0
    assert "ratio to limit" in (tmp_path / "docs" / "depth.svg").read_text(encoding="utf-8")
    _page(script, f"<!-- plot {folder} depth.svg -->")
    assert "as in width=64 batch_size=32" in str(_run(script, monkeypatch))
    _page(script, f"<!-- plot {folder} depth.svg width=64 of=warp -->")
    assert "that have warp" in str(_run(script, monkeypatch))


def test_budgets_are_one_table_and_other_settings_keep_theirs(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [record(), record(steps=60), record(cell=_cell(layers=3))]
    page = _page(script, f"<!-- table {_write(tmp_path, 'results/a', *runs)} errors -->")
    assert _run(script, monkeypatch) == 0
    text = page.read_text(encoding="utf-8")
    assert "| method | 30 steps: error | 60 steps: error |" in text
    assert text.count("| method |") == 2
    assert "fcn 3 layers" in text


def test_a_grid_of_nothing_says_so(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _page(script, f"<!-- grid {_write(tmp_path, 'results/a', record(cell=_cell(update_prob=0.2)))} -->")
    assert "no records for a grid" in str(_run(script, monkeypatch))
    _page(script, "<!-- grid results/nowhere -->")
    assert "holds no records" in str(_run(script, monkeypatch))

"""``bench layer-parallel`` in reports: its table, and its plots over depth."""

from __future__ import annotations

from typing import Any

from synthgrad.lab.report.bench_plots import bench_plot
from synthgrad.lab.report.plot import draw
from tests.lab.report.helpers import bench, bench_groups_of, failed, record, texts, typed


def line(method: str, layers: int, step_ms: float, ratio: float, *, compiled: bool = False) -> dict[str, Any]:
    metrics = {
        "step_ms_median": step_ms,
        "step_ms_p10": step_ms - 0.1,
        "step_ms_p90": step_ms + 0.1,
        "ratio_to_best_backprop": ratio,
        "ratio_to_best_backprop_p10": ratio - 0.05,
        "ratio_to_best_backprop_p90": ratio + 0.05,
        "roofline_ms": step_ms / 4,
        "ratio_to_roofline": 4.0,
    }
    cell = {"width": 64, "layers": layers, "batch_size": 32, "threads": 1, "compiled": compiled}
    config = {"rule": "cdni, linear M"} if method.startswith("layer_parallel") else {}
    return record(
        method, experiment="bench/layer-parallel", cell=cell, metrics=metrics, config=config, curve=[]
    )


LINES = [
    made
    for layers in (4, 16)
    for made in (
        line("backprop_eager", layers, 0.2 * layers, 1.1),
        line("backprop_compiled", layers, 0.18 * layers, 1.0, compiled=True),
        line("layer_parallel", layers, 0.5 + 0.01 * layers, 0.4),
    )
]


def test_a_table_with_ratio_and_limit() -> None:
    sheet = bench("layer-parallel", LINES)
    rows = [dict(zip(sheet.headings, row, strict=True)) for row in sheet.rows]
    assert [row["method"] for row in rows[:3]] == ["backprop", "backprop", "layer-parallel, cdni, linear M"]
    assert [row["compiled"] for row in rows[:3]] == ["—", "compiled", "—"]
    assert rows[2]["step"] == "0.54 ms"
    assert (rows[2]["ratio to best backprop"], rows[2]["10–90 %"]) == ("0.40 ×", "0.35–0.45")
    assert rows[2]["ratio to limit"] == "4.00 ×"
    assert not any(sheet.bad)


def test_the_general_step_has_a_name_of_its_own() -> None:
    sheet = bench("layer-parallel", [*LINES, line("layer_parallel_general", 4, 1.0, 1.0)])
    assert sheet.rows[-1][0] == "layer-parallel, general step, cdni, linear M"


def test_a_peer_that_failed_is_said() -> None:
    cell = {"width": 64, "layers": 4, "batch_size": 32, "threads": 1, "compiled": True}
    broken = failed(
        "RuntimeError: no compiler", "backprop_compiled", experiment="bench/layer-parallel", cell=cell
    )
    sheet = bench("layer-parallel", [*LINES, broken])
    assert sheet.bad[-1]
    assert "no compiler" in sheet.failures[0]


def test_time_ratio_and_distance_to_the_limit_are_drawn_over_depth() -> None:
    groups = bench_groups_of("layer-parallel", LINES)
    assert [group.heading for group in groups] == [
        "Time of a step",
        "Ratio of a step to the best backprop",
        "Ratio of a step to its limit",
    ]
    assert {"layers", "step (ms)", "backprop", "compiled"} <= set(texts(groups[0].plots[0]))


def test_one_plot_of_one_width() -> None:
    plot = bench_plot("layer-parallel", typed(LINES))
    assert plot is not None
    said = {"layers", "4", "16", "step (ms)", "backprop", "layer-parallel", "eager", "compiled"}
    assert said <= set(texts(plot))
    assert 'aria-label="time of a step over layers, width 64"' in draw(plot)
    ratios = bench_plot("layer-parallel", typed(LINES), "ratio_to_roofline")
    assert ratios is not None
    assert "ratio to limit (×)" in texts(ratios)
    assert bench_plot("layer-parallel", typed(LINES), "warp") is None
    other = line("layer_parallel", 4, 1.0, 1.0)
    other["cell"]["width"] = 256
    assert bench_plot("layer-parallel", typed([*LINES, other])) is None

"""The tables and plots of ``bench plan``: errors over lines that nothing was fitted to, misses named, lost throughput."""

from __future__ import annotations

from typing import Any

from synthgrad.lab.records import Cell, Metrics, Record
from synthgrad.lab.report.bench_plots import bench_plot, bench_plot_groups
from synthgrad.lab.report.benches import bench_groups, bench_sheet
from synthgrad.lab.report.plot import draw
from synthgrad.lab.report.sheet import markdown


def record(method: str, metrics: dict[str, Any], **cell: Any) -> Record:
    what = cell.pop("what", "records")
    return Record(
        experiment="plan",
        method=method,
        cell=Cell({"what": what, "batch_size": 256, "stages": 2, "emulated": False, **cell}),
        metrics=Metrics(metrics),
        status="ok",
    )


def line(method: str, predicted: float, measured: float, *, fitted: bool = False, **cell: Any) -> Record:
    figures = {
        "predicted_ms": predicted,
        "measured_ms": measured,
        "error_pct": 100 * (predicted / measured - 1),
    }
    spread = {"measured_ms_p10": 0.9 * measured, "measured_ms_p90": 1.1 * measured}
    return record(method, {**figures, **spread, "is_fitted": fitted}, **cell)


LINES = [
    line("1f1b", 90.0, 100.0, fitted=True, microbatches=2),
    line("1f1b", 103.0, 100.0, microbatches=4),
    line("1f1b", 95.0, 100.0, microbatches=8),
    line("stages", 120.0, 100.0, emulated=True, rtt_ms=50.0, mbit_s=100.0),
]


def test_lines_of_a_fit_are_no_part_of_the_errors() -> None:
    assert list(bench_groups(LINES)) == ["plan of records"]
    sheet = bench_sheet("plan of records", LINES)
    rows = {row[0]: row[1:] for row in sheet.rows}
    assert rows["1F1B"] == ("2", "4.0 %", "5.0 %", "2 of 2", "2 of 2")
    assert rows["stages, cDNI"] == ("1", "20.0 %", "20.0 %", "0 of 1", "1 of 1")
    assert rows["all"][:3] == ("3", "5.0 %", "20.0 %")
    assert "Left out of the errors: 1 lines" in sheet.notes[0]
    (miss,) = sheet.notes[1:]
    assert miss == (
        "Over 10 %: stages, batch 256, 2 stages, 50 ms, 100 Mbit/s: measured 100.0 [90.0, 110.0] ms, predicted 120.0 ms "
        "(+20 %)."
    )


def test_predicted_stands_over_measured_with_lines_of_the_fit_hollow() -> None:
    plot = bench_plot("plan of records", LINES)
    assert plot is not None
    assert [(drawn.name, drawn.hollow, drawn.points) for drawn in plot.lines] == [
        ("1F1B", False, ((100.0, 103.0, 0.0, 0.0), (100.0, 95.0, 0.0, 0.0))),
        ("", True, ((100.0, 90.0, 0.0, 0.0),)),
        ("stages, cDNI", False, ((100.0, 120.0, 0.0, 0.0),)),
    ]
    assert "<svg" in draw(plot)


def test_lost_throughput_has_a_line_for_each_rate() -> None:
    grid = [
        record("stages", {"lost_pct": lost}, what="scale", rtt_ms=rtt, mbit_s=rate)
        for rate, rtt, lost in ((1e4, 200.0, 48.0), (1e4, 0.1, 47.0), (100.0, 0.1, 99.0), (None, None, 0.0))
    ]
    ((group,),) = (bench_plot_groups("plan of scale", grid),)
    (plot,) = group.plots
    assert [(drawn.name, [p[:2] for p in drawn.points]) for drawn in plot.lines] == [
        ("100 Mbit/s", [(0.1, 99.0)]),
        ("10 Gbit/s", [(0.1, 47.0), (200.0, 48.0)]),
    ]
    assert plot.ticks == (0.1, 200.0)


def test_other_parts_show_what_they_have() -> None:
    cuts = [
        record("planned", {"cut": "layer4", "predicted_ms": 12.0}, what="cuts", network="mlp"),
        record(
            "single cut",
            {"cut": "layer3", "measured_ms": 13.0, "is_chosen": False},
            what="cuts",
            network="mlp",
        ),
    ]
    text = markdown(bench_sheet("plan of cuts", cuts))
    assert "| planned | layer4 | 12.00 ms | — | — |" in text
    assert "| single cut | layer3 | — | 13.00 ms | no |" in text

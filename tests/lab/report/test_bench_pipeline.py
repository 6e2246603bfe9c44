"""``bench pipeline`` in reports: its table, and its plots over the round trip."""

from __future__ import annotations

from typing import Any

import pytest

from synthgrad.lab.report import Sheet
from synthgrad.lab.report.bench_plots import bench_plot
from synthgrad.lab.report.plot import draw
from synthgrad.lab.report.words import TEXTS
from tests.lab.report.helpers import bench, bench_groups_of, failed, record, texts, typed

EXPERIMENT = "bench/pipeline"


def line(method: str, rtt_ms: float, step_ms: float, ratio: float, **more: Any) -> dict[str, Any]:
    cell = {
        **{"width": 512, "layers": 9, "batch_size": 256, "stages": 2, "threads": 1, "microbatches": None},
        **{"variant": None, "observe_prob": None, "link": "emulated", "rtt_ms": rtt_ms, "mbit_s": 1000.0},
    }
    metrics = {
        "step_ms_median": step_ms,
        "examples_per_s": 256e3 / step_ms,
        "ratio_to_best_pipeline": ratio,
        "ratio_to_best_pipeline_p10": ratio - 0.05,
        "ratio_to_best_pipeline_p90": ratio + 0.05,
        "ratio_to_backprop": step_ms / 20,
        "sent_bytes_per_step": 2.0**20,
        "peak_bytes": 50 * 2**20,
    }
    cell |= {k: v for k, v in more.items() if k in cell}
    metrics |= {k: v for k, v in more.items() if k not in cell}
    rule = "local loss" if method == "stages_local" else "cdni, linear M"
    config = {"rule": rule} if method.startswith("stages") else {}
    return record(method, experiment=EXPERIMENT, cell=cell, metrics=metrics, config=config, curve=[])


LINES = [
    made
    for rtt_ms in (0.0, 50.0, 200.0)
    for made in (
        line("backprop", rtt_ms, 20.0, 0.5),
        line("backprop_all_threads", rtt_ms, 12.0, 0.3),
        line("gpipe", rtt_ms, 30.0 + 2 * rtt_ms, 1.5, microbatches=2, is_best=False),
        line("gpipe", rtt_ms, 20.0 + 2 * rtt_ms, 1.0, microbatches=4, is_best=True),
        line("zero_bubble", rtt_ms, 25.0 + 3 * rtt_ms, 1.4, microbatches=8, variant="zbv", is_best=True),
        line("stages", rtt_ms, 14.0, 0.2, observe_prob=1.0),
        line("stages_sparse", rtt_ms, 13.0, 0.1, observe_prob=0.25),
    )
]


def rows(sheet: Sheet) -> list[dict[str, str]]:
    return [dict(zip(sheet.headings, row, strict=True)) for row in sheet.rows]


def test_a_table_with_the_best_of_each_schedule() -> None:
    found = rows(bench("pipeline", LINES))
    assert [(row["method"], row["microbatches"]) for row in found[6:12]] == [
        ("backprop", "—"),
        ("backprop, all threads", "—"),
        ("GPipe", "4"),
        ("zero bubble, zbv", "8"),
        ("stages, cdni, linear M", "—"),
        ("stages, cdni, linear M, 25 % of messages", "—"),
    ]
    assert [row["threads"] for row in found[:3]] == ["1", "2", "1"]
    row = found[10]
    assert (row["round trip"], row["rate"], row["stages"]) == ("50 ms", "1000 Mbit/s", "2")
    assert {(r["round trip"], r["rate"]) for r in (*found[6:8], *found[12:14])} == {
        ("—", "—")
    }  # of one process
    assert (row["step"], row["throughput"], row["sent"]) == ("14.00 ms", "18,286 /s", "1.00 MiB")
    assert (row["ratio to best pipeline"], row["10–90 %"]) == ("0.20 ×", "0.15–0.25")
    assert (row["ratio to backprop"], row["peak memory"]) == ("0.70 ×", "50.00 MiB")
    assert not [
        heading for heading in row if "accuracy" in heading or "rate" in heading and heading != "rate"
    ]
    assert "Best pipeline" in TEXTS["benchmarks"]["pipeline"]


def test_time_to_an_accuracy_has_columns_where_it_was_measured() -> None:
    learned = {"target_accuracy_pct": 98.0, "accuracy_pct": 98.1, "time_to_accuracy_s": 12.5}
    made = [
        line("gpipe", 0.0, 20.0, 1.0, **learned, time_to_accuracy_other_lr_s=8.0),
        line("stages", 0.0, 14.0, 0.7, **learned | {"time_to_accuracy_s": None, "accuracy_pct": 97.0}),
    ]
    first, second = rows(bench("pipeline", made))
    assert (first["target accuracy"], first["time to it"]) == ("98 %", "12.5 s")
    assert (first["with the other rate"], second["with the other rate"]) == ("8.0 s", "—")
    assert (second["time to it"], second["accuracy"]) == ("—", "97.00 %")


def test_the_loopback_device_is_no_link() -> None:
    (row,) = rows(bench("pipeline", [line("stages", 0.0, 14.0, 0.2, link="loopback", mbit_s=None)]))
    assert "round trip" not in row
    assert "rate" not in row


def test_a_peer_that_failed_keeps_its_row_and_reason() -> None:
    broken = failed(
        "process 0: ValueError: too few microbatches", "1f1b", experiment=EXPERIMENT, cell=LINES[3]["cell"]
    )
    sheet = bench("pipeline", [*LINES, broken])
    assert sheet.bad[-1]
    assert "too few microbatches" in sheet.failures[0]
    assert rows(sheet)[-1]["step"].startswith("process 0: ValueError")
    assert rows(sheet)[-1]["microbatches"] == "4"


def test_throughput_is_drawn_over_the_round_trip() -> None:
    groups = bench_groups_of("pipeline", LINES)
    assert [group.heading for group in groups] == [
        "Throughput",
        "Ratio of a step to the best pipeline",
        "Sent in a step by all processes",
    ]
    (plot,) = groups[0].plots
    found = set(texts(plot))
    assert {"round trip (ms)", "throughput (10³ examples/s)", "0", "50", "200"} <= found
    assert {"backprop", "GPipe", "zero bubble, zbv", "stages", "stages, 25 % of messages"} <= found
    assert 'aria-label="throughput over round trip (ms), width 512"' in draw(plot)


def test_a_schedule_has_one_point_at_each_round_trip() -> None:
    gpipe = [r for r in LINES if r["method"] == "gpipe"]
    both = bench_plot("pipeline", typed(gpipe))
    best = bench_plot("pipeline", typed([r for r in gpipe if r["metrics"]["is_best"]]))
    assert both == best


@pytest.mark.parametrize(
    ("name", "value", "words"), [("stages", 4, "4 stages"), ("mbit_s", None, "any Mbit/s")]
)
def test_other_stages_and_rates_have_a_panel_of_their_own(name: str, value: Any, words: str) -> None:
    other = line("stages", 50.0, 9.0, 0.1, **{name: value})
    titles = [plot.title for plot in bench_groups_of("pipeline", [*LINES, other])[0].plots]
    assert len(titles) == 2
    assert any(words in title for title in titles)


def test_one_round_trip_is_a_row_for_each_method() -> None:
    (plot,) = bench_groups_of("pipeline", LINES[:7])[0].plots
    found = texts(plot)
    assert {"GPipe", "stages", "throughput (10³ examples/s)"} <= set(found)
    assert "round trip 0 ms" in plot.title


def test_lines_that_others_wrote_are_shown_without_a_mark() -> None:
    bare = record(
        "gpipe", experiment=EXPERIMENT, cell={}, metrics={"step_ms_median": 3.0}, config={}, curve=[]
    )
    (row,) = rows(bench("pipeline", [bare]))
    assert (row["method"], row["step"], row["throughput"]) == ("GPipe", "3.00 ms", "—")


def test_two_rules_are_two_lines_of_a_plot_and_one_rule_is_not_named() -> None:
    local = [line("stages_local", rtt_ms, 12.0, 0.1, observe_prob=1.0) for rtt_ms in (0.0, 50.0, 200.0)]
    plots = [bench_plot("pipeline", typed(lines)) for lines in ([*LINES, *local], LINES)]
    both, one = (texts(plot) for plot in plots if plot is not None)
    assert {"stages, cdni, linear M", "stages, local loss"} <= set(both)
    assert "stages" in one


def test_a_link_that_all_processes_share_stands_in_the_caption_and_is_not_claimed_by_one_process() -> None:
    fitted = bench("pipeline", LINES[7:14]).fitted()
    assert fitted.caption == (
        "All rows: layers × width: 9 × 512; batch: 256; stages: 2; sent: 1.00 MiB; peak memory: 50.00 MiB.",
        "Between processes: round trip: 50 ms; rate: 1000 Mbit/s.",
    )
    assert fitted.main.headings == (
        *(
            "method",
            "setting",
            "step",
            "throughput",
            "ratio to best pipeline",
            "10–90 %",
            "ratio to backprop",
        ),
    )
    assert fitted.main.rows[2][:3] == ("GPipe", "threads 1, microbatches 4", "120.00 ms")
    assert fitted.more == ()

"""Benchmarks: each with its own columns and plots."""

from __future__ import annotations

import re
from typing import Any

import pytest

from synthgrad.lab.records import Record
from synthgrad.lab.report import Sheet, bench_groups, bench_markdown, bench_sheet
from synthgrad.lab.report.bench_plots import bench_plots
from tests.lab.report.helpers import memory_line, record, step_line


def _row(sheet: Sheet, k: int = 0) -> dict[str, str]:
    return dict(zip(sheet.headings, sheet.rows[k], strict=True))


def _texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_lines_are_grouped_by_benchmark() -> None:
    groups = bench_groups([step_line(), record(), memory_line(), step_line("cdni")])
    assert {name: len(lines) for name, lines in groups.items()} == {"step": 2, "memory": 1}


# Steps


def test_step_markdown() -> None:
    lines = bench_markdown([step_line()]).splitlines()
    assert (
        lines[0]
        == "| method | layers × width | batch | threads | step | ratio to backprop | 10–90 % | arithmetic |"
    )
    assert lines[2] == "| dni, plain | 4 × 16 | 8 | 1 | 1.50 ms | 0.50 × | 0.40–0.60 | 1.25 × |"


def test_markdown_has_a_table_for_each_benchmark() -> None:
    assert bench_markdown([step_line(), memory_line()]).count("\n|---|") == 2


def test_compiled_rows_are_told_apart() -> None:
    sheet = bench_sheet("step", [step_line(cell={"compiled": c}) for c in (False, True)])
    assert [_row(sheet, k)["compiled"] for k in (0, 1)] == ["—", "compiled"]
    assert "compiled" not in bench_sheet("step", [step_line(cell={"compiled": False})]).headings


def test_learning_has_columns_where_it_was_measured() -> None:
    assert "time to it" not in bench_sheet("step", [step_line()]).headings
    learned = step_line("cdni", time_to_accuracy_s=12.34, accuracy_pct=97.5, target_accuracy_pct=97.0)
    row = _row(bench_sheet("step", [step_line(), learned]), 1)
    assert (row["target accuracy"], row["time to it"], row["accuracy"]) == ("97 %", "12.3 s", "97.50 %")


def test_skipped_updates_are_said_in_place_of_arithmetic() -> None:
    row = _row(bench_sheet("step", [step_line(cell={"update_prob": 0.2}, ratio_arithmetic=None)]))
    assert (row["method"], row["arithmetic"]) == ("dni, plain, p=0.2", "80 % of updates skipped")


def test_failed_line_keeps_its_row_and_reason() -> None:
    line = step_line() | {"metrics": {}, "status": "failed", "error": "no such kernel"}
    sheet = bench_sheet("step", [step_line("cdni"), line])
    assert sheet.bad == (False, True)
    assert _row(sheet, 1)["step"] == "no such kernel"
    assert sheet.failures == ("failed: no such kernel (dni, plain, 4 × 16)",)


def test_rows_that_failed_alike_are_one_line() -> None:
    lines = [
        step_line(m) | {"metrics": {}, "status": "failed", "error": "out of memory"} for m in ("dni", "cdni")
    ]
    (failure,) = bench_sheet("step", lines).failures
    assert "dni, plain, 4 × 16; cdni, plain, 4 × 16" in failure


# Memory


def test_memory_columns_are_in_mib() -> None:
    row = _row(bench_sheet("memory", [memory_line()]))
    assert row == {
        "method": "decoupled, in process",
        "layers × width": "4 × 16",
        "batch": "8",
        "threads": "1",
        "held for backward": "3.00 MiB",
        "ratio to backprop": "0.50 ×",
    }


def test_memory_has_peaks_and_steps_where_they_were_measured() -> None:
    full = memory_line(
        "checkpointing",
        cell={"segments": 3, "variant": "fewest bytes"},
        peak_bytes=5e6,
        ratio_peak_to_backprop=0.75,
        step_ms_median=2.0,
        ratio_step_to_backprop=1.3,
    )
    row = _row(bench_sheet("memory", [memory_line(), full]), 1)
    assert row["method"] == "backprop, checkpointed, fewest bytes"
    assert row["segments"] == "3"
    assert (row["peak memory"], row["ratio of peaks"]) == ("4.77 MiB", "0.75 ×")
    assert (row["step"], row["ratio of steps"]) == ("2.00 ms", "1.30 ×")


# Others


def test_other_benchmarks_show_every_parameter_and_metric() -> None:
    metrics = {"step_ms_median": 12.0, "examples_per_s": 250.0, "sent_bytes_per_step": 2.0**21}
    line = record("gpipe", experiment="bench/conveyor", cell={"stages": 4, "rtt_ms": 20.0}, metrics=metrics)
    assert _row(bench_sheet("conveyor", [line])) == {
        "method": "gpipe",
        "stages": "4",
        "rtt": "20",
        "step median": "12.00 ms",
        "examples": "250 /s",
        "sent per step": "2.00 MiB",
    }
    assert bench_plots("conveyor", [line]) == []


# Plots


def _step_sweep() -> list[dict[str, Any]]:
    return [
        step_line(method, cell={"layers": layers, "width": width, "compiled": compiled})
        for method in ("dni", "cdni")
        for layers in (4, 8, 16)
        for width in (16, 32)
        for compiled in (False, True)
    ]


def test_ratio_has_a_panel_for_each_width() -> None:
    over_depth, against = bench_plots("step", _step_sweep())
    assert [plot.title for plot in over_depth.plots] == ["width 16", "width 32"]
    assert len(against.plots) == 1
    texts = _texts(over_depth.plots[0].draw())
    assert {"layers", "ratio to backprop (×)", "4", "8", "16", "eager", "compiled"} <= set(texts)
    assert texts.count("dni, plain") == 1
    texts = _texts(against.plots[0].draw())
    assert {"arithmetic ratio (×)", "measured ratio (×)", "dni, plain", "cdni, plain"} <= set(texts)


def test_compiled_lines_are_dashed_and_eager_ones_not() -> None:
    def dashes(compiled: bool) -> int:
        lines = [step_line(cell={"layers": n, "compiled": compiled}) for n in (4, 8)]
        svg = bench_plots("step", lines)[0].plots[0].draw()
        axes = svg.split('aria-label="')[1]
        return len(re.findall(r"stroke-dasharray: 5\.55", axes))

    assert dashes(compiled=False) == 0
    assert dashes(compiled=True) > 0


def test_panels_name_what_differs_besides_the_width() -> None:
    lines = [step_line(cell={"batch_size": n, "layers": layers}) for n in (8, 64) for layers in (4, 8)]
    assert [p.title for p in bench_plots("step", lines)[0].plots] == [
        "width 16, batch 8",
        "width 16, batch 64",
    ]


def test_one_depth_is_drawn_as_a_row_for_each_method() -> None:
    (plot,) = bench_plots("step", [step_line("dni"), step_line("cdni")])[0].plots
    assert plot.title == "width 16, 4 layers"
    assert {"dni, plain", "cdni, plain", "ratio to backprop (×)"} <= set(_texts(plot.draw()))


def test_rules_are_named_where_a_method_has_two() -> None:
    lines = [
        step_line(cell={"layers": n}) | {"config": {"rule": rule}}
        for n in (4, 8)
        for rule in ("linear M", "wide M")
    ]
    texts = _texts(bench_plots("step", lines)[0].plots[0].draw())
    assert {"dni, linear M, plain", "dni, wide M, plain"} <= set(texts)


def test_rows_that_skip_updates_are_not_held_against_arithmetic() -> None:
    lines = [step_line(cell={"update_prob": 0.2})]
    assert [group.heading for group in bench_plots("step", lines)] == ["Ratio of a step to backprop"]


def test_memory_is_drawn_over_depth_in_mib() -> None:
    lines = [
        memory_line(method, cell={"layers": n}, saved_bytes_peak=n * 2.0**20)
        for method in ("backprop", "in_process")
        for n in (4, 8)
    ]
    (held,) = bench_plots("memory", lines)
    assert {"held for backward (MiB)", "layers", "backprop"} <= set(_texts(held.plots[0].draw()))
    peaks = [memory_line(cell={"layers": n}, peak_bytes=1e6) for n in (4, 8)]
    assert [g.heading for g in bench_plots("memory", peaks)] == ["Held for the backward pass", "Peak memory"]


def test_several_values_at_one_depth_are_not_joined() -> None:
    def num_lines(*layers: int) -> int:
        lines = [memory_line(cell={"layers": n}, saved_bytes_peak=1e6 * k) for k, n in enumerate(layers, 1)]
        svg = bench_plots("memory", lines)[0].plots[0].draw()
        return len(re.findall(r'd="M [^"]*L[^"]*"[^>]*stroke: var\(--c0\)', svg))

    assert num_lines(4, 8, 16) - num_lines(4, 4, 8) == 1


@pytest.mark.parametrize("name", ["step", "memory"])
def test_lines_without_metrics_make_no_plot(name: str) -> None:
    line = {"step": step_line, "memory": memory_line}[name]() | {"metrics": {}, "status": "failed"}
    assert bench_plots(name, [line]) == []


def test_a_sweep_of_hundreds_is_bounded() -> None:
    lines = [
        step_line(cell={"width": w, "layers": n}) for w in range(1, 31) for n in (*range(2, 200, 9), 200)
    ]
    groups = bench_plots("step", lines)
    assert len(groups[0].plots) == 12
    assert "18 more panels" in groups[0].note


def recurrent_line(name: str, method: str, metrics: dict[str, Any], **cell: Any) -> Record:
    shape = {"arch": "lstm", "width": 256, "layers": 1, "batch_size": 64, "unroll": 5, "threads": 1}
    return {
        **{"schema": 1, "experiment": f"bench/{name}", "method": method, "seed": 0, "cell": shape | cell},
        **{"metrics": metrics, "status": "ok", "config": {}, "env": {}},
    }


def test_unrolls_have_a_table_and_a_plot_over_their_lengths() -> None:
    lines = [
        recurrent_line(
            "unroll",
            method,
            {
                "step_ms_median": 2.0 * t,
                "ratio_to_hand_written": ratio,
                "ratio_to_hand_written_p10": ratio - 0.1,
                "ratio_to_hand_written_p90": ratio + 0.1,
            },
            unroll=t,
        )
        for t in (5, 10)
        for method, ratio in (("hand_written", 1.0), ("dni", 1.2))
    ]
    sheet = bench_sheet("unroll", lines)
    assert sheet.headings[:3] == ("method", "network", "T")
    assert sheet.rows[1] == ("dni", "lstm 256", "5", "64", "1", "10.00 ms", "1.20 ×", "1.10–1.30")
    ((plot,),) = [group.plots for group in bench_plots("unroll", lines)]
    assert plot.title == "width 256"
    assert "T (steps)" in plot.draw()


def test_memory_of_unrolls_is_drawn_over_the_horizon() -> None:
    lines = [
        recurrent_line(
            "memory",
            method,
            {"saved_bytes_peak": 2.0**20 * size, "ratio_to_full_bptt": 0.5, "unroll_ms_median": 3.0},
            horizon=horizon,
        )
        for horizon in (40, 120)
        for method, size in (("full_bptt", horizon), ("dni", 5))
    ]
    sheet = bench_sheet("memory", lines)
    assert sheet.rows[0][:4] == ("bptt over the whole horizon", "lstm 256", "5", "40")
    assert sheet.rows[1][-3:] == ("5.00 MiB", "0.50 ×", "3.00 ms")
    titles = [group.heading for group in bench_plots("memory", lines)]
    assert titles == ["Held for the backward pass", "Time of an unroll"]
    assert "horizon (steps)" in bench_plots("memory", lines)[0].plots[0].draw()

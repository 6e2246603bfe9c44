"""Benchmarks: each with its own columns and plots."""

from __future__ import annotations

import re
from typing import Any

import pytest

from synthgrad.lab.report import bench_sheets, markdown
from synthgrad.lab.report.benches import bench_groups
from synthgrad.lab.report.plot import draw
from synthgrad.lab.report.words import TEXTS
from tests.lab.report.helpers import bench, bench_groups_of, memory_line, record, step_line, texts, typed
from tests.lab.report.helpers import cells as _row


def test_lines_are_grouped_by_benchmark() -> None:
    groups = bench_groups(typed([step_line(), record(), memory_line(), step_line("cdni")]))
    assert {name: len(lines) for name, lines in groups.items()} == {"step": 2, "memory": 1}


# Steps


def test_a_line_of_steps() -> None:
    assert _row(bench("step", [step_line()])) == {
        **{
            "method": "dni, plain",
            "layers × width": "4 × 16",
            "batch": "8",
            "threads": "1",
            "step": "1.50 ms",
        },
        **{"ratio to backprop": "0.50 ×", "10–90 %": "0.40–0.60", "arithmetic": "1.25 ×"},
    }


def test_a_ratio_with_a_wide_spread_is_marked_and_explained() -> None:
    wide = step_line(ratio_to_backprop=28.07, ratio_to_backprop_p10=20.0, ratio_to_backprop_p90=34.1)
    sheet = bench("step", [wide])
    assert _row(sheet)["ratio to backprop"] == "28.07 × (unsteady)"
    assert "measure again" in markdown(sheet)
    narrow = step_line(ratio_to_backprop=28.07, ratio_to_backprop_p10=20.1, ratio_to_backprop_p90=34.1)
    assert _row(bench("step", [narrow]))["ratio to backprop"] == "28.07 ×"


def test_there_is_a_table_for_each_benchmark() -> None:
    assert [sheet.title for sheet in bench_sheets([step_line(), memory_line()])] == [
        "bench/step",
        "bench/memory",
    ]


def test_compiled_rows_are_told_apart() -> None:
    sheet = bench("step", [step_line(cell={"compiled": c}) for c in (False, True)])
    assert [_row(sheet, k)["compiled"] for k in (0, 1)] == ["—", "compiled"]
    assert "compiled" not in bench("step", [step_line(cell={"compiled": False})]).headings


def test_learning_has_columns_where_it_was_measured() -> None:
    assert "time to it" not in bench("step", [step_line()]).headings
    learned = step_line("cdni", time_to_accuracy_s=12.34, accuracy_pct=97.5, target_accuracy_pct=97.0)
    row = _row(bench("step", [step_line(), learned]), 1)
    assert (row["target accuracy"], row["time to it"], row["accuracy"]) == ("97 %", "12.3 s", "97.50 %")


def test_skipped_updates_are_said_in_place_of_arithmetic() -> None:
    row = _row(bench("step", [step_line(cell={"update_prob": 0.2}, ratio_arithmetic=None)]))
    assert (row["method"], row["arithmetic"]) == ("dni, plain, p=0.2", "80 % of updates skipped")


def test_failed_line_keeps_its_row_and_reason() -> None:
    line = step_line() | {"metrics": {}, "status": "failed", "error": "no such kernel"}
    sheet = bench("step", [step_line("cdni"), line])
    assert sheet.bad == (False, True)
    assert _row(sheet, 1)["step"] == "no such kernel"
    assert sheet.failures == ("failed: no such kernel (dni, plain, 4 × 16)",)


def test_rows_that_failed_alike_are_one_line() -> None:
    lines = [
        step_line(m) | {"metrics": {}, "status": "failed", "error": "out of memory"} for m in ("dni", "cdni")
    ]
    (failure,) = bench("step", lines).failures
    assert "dni, plain, 4 × 16; cdni, plain, 4 × 16" in failure


# Memory


def test_memory_columns_are_in_mib() -> None:
    row = _row(bench("memory", [memory_line()]))
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
    row = _row(bench("memory", [memory_line(), full]), 1)
    assert row["method"] == "backprop, checkpointed, fewest bytes"
    assert row["segments"] == "3"
    assert (row["peak memory"], row["ratio of peaks"]) == ("4.77 MiB", "0.75 ×")
    assert (row["step"], row["ratio of steps"]) == ("2.00 ms", "1.30 ×")


# Language models


def gpt_line(method: str, engine: str = "in-process", *, cell: Any = (), **metrics: float) -> dict[str, Any]:
    """Return a line of `bench gpt`."""
    shape = {"arch": "gpt", "layers": 4, "width": 128, "heads": 4, "context": 64, "vocabulary": 65}
    how = {"batch_size": 32, "modules": 2, "accumulate": 1, "threads": 1, "engine": engine, "variant": None}
    measured = {
        **{"saved_bytes_peak": 3.0 * 2**20, "ratio_to_backprop": 0.5},
        **{"peak_bytes": 6.0 * 2**20, "ratio_peak_to_backprop": 0.75},
        **{"step_ms_median": 200.0, "step_ms_p10": 190.0, "step_ms_p90": 220.0},
        **{"ratio_step_to_backprop": 1.25},
    }
    return record(
        method,
        experiment="bench/gpt",
        cell=shape | how | {"delay": 0, "versions": None} | dict(cell),
        metrics=measured | metrics,
        curve=[],
        config={"optimizer": "AdamW, fused", "rule": {"head": "tokens", "blocks": 0}},
        env={"other_load": 0.0},
    )


def test_a_line_of_a_gpt() -> None:
    lines = [
        gpt_line("backprop", "hand-written loop", ratio_step_to_backprop=1.0),
        gpt_line("local_loss", cell={"variant": "linear head"}),
    ]
    assert _row(bench("gpt", lines), 1) == {
        **{"method": "local_loss, linear head", "layers × width": "gpt 4 × 128", "tokens": "32 × 64"},
        **{"vocabulary": "65", "modules": "2", "batches of an update": "1", "threads": "1"},
        **{"ratio of steps": "1.25 ×", "ratio of held": "0.50 ×", "ratio of peaks": "0.75 ×"},
        **{"step": "200.00 ms", "peak memory": "6.00 MiB", "held for backward": "3.00 MiB"},
    }
    assert _row(bench("gpt", lines))["method"] == "backprop, hand-written loop"


def test_a_ratio_of_steps_is_marked_where_the_steps_scatter_or_the_machine_was_busy() -> None:
    def ratio(line: dict[str, Any]) -> str:
        return _row(bench("gpt", [line]))["ratio of steps"]

    assert ratio(gpt_line("cdni", step_ms_p10=150.0, step_ms_p90=249.0)) == "1.25 ×"
    assert ratio(gpt_line("cdni", step_ms_p10=150.0, step_ms_p90=251.0)) == "1.25 × (unsteady)"
    assert ratio(gpt_line("cdni") | {"env": {"other_load": 1.5}}) == "1.25 × (unsteady)"


def test_ratios_and_memory_of_a_gpt_are_drawn_with_a_panel_for_each_cut_and_update() -> None:
    lines = [
        gpt_line(method, cell={"modules": modules, "accumulate": accumulate})
        for method in ("delayed", "cdni")
        for modules in (2, 4)
        for accumulate in (1, 4)
    ]
    groups = bench_groups_of("gpt", lines)
    assert [group.heading for group in groups] == [
        "Ratio of a step to backprop",
        "Held for the backward pass",
        "Peak memory",
    ]
    assert [plot.title for plot in groups[0].plots] == [
        f"width 128, {modules} modules, {accumulate} batches to an update, 4 layers"
        for modules in (2, 4)
        for accumulate in (1, 4)
    ]
    assert {"delayed", "cdni", "ratio to backprop (×)"} <= set(texts(groups[0].plots[0]))


def head_line(method: str, **metrics: float) -> dict[str, Any]:
    """Return a line of `bench token-head`."""
    shape = {"vocabulary": 50_000, "width": 768, "heads": 12, "context": 1024, "batch_size": 2}
    num_chunks = 16 if method == "token_head" else None
    measured = {"step_ms_median": 9000.0, "step_ms_p10": 9000.0, "step_ms_p90": 9100.0}
    return record(
        method,
        experiment="bench/token-head",
        cell={**shape, "blocks": 1, "num_chunks": num_chunks, "threads": 1},
        metrics={**measured, "ratio_step_to_whole_logits": 1.2, "saved_bytes_peak": 2.0**20} | metrics,
        curve=[],
        env={},
    )


def test_a_line_of_a_token_head() -> None:
    peaks = {"peak_bytes": 2.0**30, "ratio_peak_to_whole_logits": 0.4}
    lines = [
        head_line("whole_logits"),
        head_line("token_head", logits_bytes_peak=25_600_000.0, largest_logits_share=0.0625, **peaks),
    ]
    sheet = bench("token-head", lines)
    assert _row(sheet, 1) == {
        **{"method": "token head", "parts": "16", "private blocks": "1", "vocabulary": "50000"},
        **{"width": "768", "tokens": "2 × 1024", "threads": "1"},
        **{"logits at once": "24.41 MiB", "of all logits": "6.25 %"},
        **{"peak memory": "1,024.00 MiB", "ratio of peaks": "0.40 ×"},
        **{"step": "9,000.00 ms", "ratio of steps": "1.20 ×", "held for backward": "1.00 MiB"},
    }
    whole = _row(sheet)
    assert (whole["method"], whole["parts"], whole["of all logits"]) == ("whole logits", "—", "—")


@pytest.mark.parametrize("name", ["gpt", "token-head"])
def test_what_is_measured_stands_over_the_table(name: str) -> None:
    assert name in TEXTS["benchmarks"]


# Others


def test_other_benchmarks_show_every_parameter_and_metric() -> None:
    metrics = {"step_ms_median": 12.0, "examples_per_s": 250.0, "sent_bytes_per_step": 2.0**21}
    line = record("gpipe", experiment="bench/conveyor", cell={"stages": 4, "rtt_ms": 20.0}, metrics=metrics)
    assert _row(bench("conveyor", [line])) == {
        "method": "gpipe",
        "stages": "4",
        "rtt": "20",
        "step median": "12.00 ms",
        "examples": "250 /s",
        "sent per step": "2.00 MiB",
    }
    assert bench_groups_of("conveyor", [line]) == []


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
    over_depth, against = bench_groups_of("step", _step_sweep())
    assert [plot.title for plot in over_depth.plots] == ["width 16", "width 32"]
    assert len(against.plots) == 1
    said = texts(over_depth.plots[0])
    assert {"layers", "ratio to backprop (×)", "4", "8", "16", "eager", "compiled"} <= set(said)
    assert said.count("dni, plain") == 1
    said = texts(against.plots[0])
    assert {"arithmetic ratio (×)", "measured ratio (×)", "dni, plain", "cdni, plain"} <= set(said)


def test_compiled_lines_are_dashed_and_eager_ones_not() -> None:
    def dashes(compiled: bool) -> int:
        lines = [step_line(cell={"layers": n, "compiled": compiled}) for n in (4, 8)]
        svg = draw(bench_groups_of("step", lines)[0].plots[0])
        axes = svg.split('aria-label="')[1]
        return len(re.findall(r"stroke-dasharray: 5\.92", axes))

    assert dashes(compiled=False) == 0
    assert dashes(compiled=True) > 0


def test_panels_name_what_differs_besides_the_width() -> None:
    lines = [step_line(cell={"batch_size": n, "layers": layers}) for n in (8, 64) for layers in (4, 8)]
    assert [p.title for p in bench_groups_of("step", lines)[0].plots] == [
        "width 16, batch 8",
        "width 16, batch 64",
    ]


def test_one_depth_is_drawn_as_a_row_for_each_method() -> None:
    (plot,) = bench_groups_of("step", [step_line("dni"), step_line("cdni")])[0].plots
    assert plot.title == "width 16, 4 layers"
    assert {"dni, plain", "cdni, plain", "ratio to backprop (×)"} <= set(texts(plot))


def test_rules_are_named_where_a_method_has_two() -> None:
    lines = [
        step_line(cell={"layers": n}) | {"config": {"rule": rule}}
        for n in (4, 8)
        for rule in ("linear M", "wide M")
    ]
    said = texts(bench_groups_of("step", lines)[0].plots[0])
    assert {"dni, linear M, plain", "dni, wide M, plain"} <= set(said)


def test_rows_that_skip_updates_are_not_held_against_arithmetic() -> None:
    lines = [step_line(cell={"update_prob": 0.2})]
    assert [group.heading for group in bench_groups_of("step", lines)] == ["Ratio of a step to backprop"]


def test_memory_is_drawn_over_depth_in_mib() -> None:
    lines = [
        memory_line(method, cell={"layers": n}, saved_bytes_peak=n * 2.0**20)
        for method in ("backprop", "in_process")
        for n in (4, 8)
    ]
    (held,) = bench_groups_of("memory", lines)
    assert {"held for backward (MiB)", "layers", "backprop"} <= set(texts(held.plots[0]))
    peaks = [memory_line(cell={"layers": n}, peak_bytes=1e6) for n in (4, 8)]
    assert [g.heading for g in bench_groups_of("memory", peaks)] == [
        "Held for the backward pass",
        "Peak memory",
    ]


def test_several_values_at_one_depth_are_not_joined() -> None:
    def num_lines(*layers: int) -> int:
        lines = [memory_line(cell={"layers": n}, saved_bytes_peak=1e6 * k) for k, n in enumerate(layers, 1)]
        svg = draw(bench_groups_of("memory", lines)[0].plots[0])
        return len(re.findall(r'd="M [^"]*L[^"]*"[^>]*stroke: var\(--c0\)', svg))

    assert num_lines(4, 8, 16) - num_lines(4, 4, 8) == 1


@pytest.mark.parametrize("name", ["step", "memory"])
def test_lines_without_metrics_make_no_plot(name: str) -> None:
    line = {"step": step_line, "memory": memory_line}[name]() | {"metrics": {}, "status": "failed"}
    assert bench_groups_of(name, [line]) == []


def test_a_sweep_of_hundreds_is_bounded() -> None:
    lines = [
        step_line(cell={"width": w, "layers": n}) for w in range(1, 31) for n in (*range(2, 200, 9), 200)
    ]
    groups = bench_groups_of("step", lines)
    assert len(groups[0].plots) == 12
    assert "18 more panels" in groups[0].note


def recurrent_line(name: str, method: str, metrics: dict[str, Any], **cell: Any) -> dict[str, Any]:
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
    sheet = bench("unroll", lines)
    assert sheet.headings[:3] == ("method", "network", "T")
    assert sheet.rows[1] == ("dni", "lstm 256", "5", "64", "1", "10.00 ms", "1.20 ×", "1.10–1.30")
    ((plot,),) = [group.plots for group in bench_groups_of("unroll", lines)]
    assert plot.title == "width 256"
    assert "T (steps)" in texts(plot)


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
    assert list(bench_groups(typed([*lines, memory_line()]))) == ["memory of unrolls", "memory"]
    sheet = bench("memory of unrolls", lines)
    assert sheet.rows[0][:4] == ("bptt over the whole horizon", "lstm 256", "5", "40")
    assert sheet.rows[1][-3:] == ("5.00 MiB", "0.50 ×", "3.00 ms")
    titles = [group.heading for group in bench_groups_of("memory of unrolls", lines)]
    assert titles == ["Held for the backward pass", "Time of an unroll"]
    assert "horizon (steps)" in texts(bench_groups_of("memory of unrolls", lines)[0].plots[0])

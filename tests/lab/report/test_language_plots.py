"""Plots of language models: which there are, which rows share one, and what is drawn, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from synthgrad.lab.report.language_plots import language_groups, language_plots
from synthgrad.lab.report.plot import Group, Line, Plot
from tests.lab.report.helpers import texts
from tests.lab.report.language import gpt_run, language, late
from tests.lab.report.recurrent import bad


def _plots(*records: dict[str, Any], over: str = "data", of: str = "") -> list[Plot]:
    (table,) = language(*records)
    return language_plots(table, over, of)


def _groups(*records: dict[str, Any]) -> list[Group]:
    (table,) = language(*records)
    return language_groups(table)


def _drawn(plot: Plot) -> dict[str, list[tuple[float, float]]]:
    """Return places and heights of the named lines."""
    return {line.name: [p[:2] for p in line.points] for line in plot.lines if line.name}


def _named(plots: list[Plot]) -> dict[str, list[str]]:
    return {plot.title: [line.name for line in plot.lines if line.name] for plot in plots}


# Curves


def test_bits_over_tokens_and_over_seconds() -> None:
    runs = [gpt_run(bits=(4.0, 3.0, 2.5)), late(1, (4.5, 3.5, 2.75))]
    (tokens,), (seconds,) = _plots(*runs), _plots(*runs, over="seconds")
    assert _drawn(tokens) == {
        "backprop": [(1280, 4.0), (2560, 3.0), (3840, 2.5)],
        "delayed (delay 1)": [(1280, 4.5), (2560, 3.5), (3840, 2.75)],
    }
    assert _drawn(seconds)["delayed (delay 1)"] == [(1, 4.5), (2, 3.5), (3, 2.75)]
    assert {"tokens seen", "bits per character, validation"} <= set(texts(tokens))
    assert "training time (s)" in texts(seconds)
    (training,) = _plots(*runs, of="train_bits_per_char")
    assert _drawn(training)["backprop"] == [(1280, 3.9), (2560, 2.9), (3840, 2.4)]


def test_many_tokens_are_thousands_or_millions() -> None:
    curve = [{"tokens_seen": 1_500_000 * k, "val_bits_per_char": 3.0 - k / 2} for k in (1, 2)]
    (plot,) = _plots(gpt_run(curve=curve))
    assert _drawn(plot)["backprop"] == [(1.5, 2.5), (3.0, 2.0)]
    assert plot.x_label == "tokens seen (millions)"


def test_the_steep_quarter_of_a_curve_does_not_take_the_room() -> None:
    curve = [{"tokens_seen": k, "val_bits_per_char": b} for k, b in ((20, 6.0), (25, 3.0), (100, 2.0))]
    (plot,) = _plots(gpt_run(curve=curve))
    assert plot.y_range == pytest.approx((1.97, 3.03))


def test_the_cosine_is_the_mean_over_interfaces() -> None:
    halves = {"block1": {"cosine": 0.25}, "block2": {"cosine": 0.75}, "block3": {"cosine": None}}
    curve = [{"tokens_seen": 10, "quality": halves}, {"tokens_seen": 20}]
    (plot,) = _plots(gpt_run(), gpt_run("cdni", curve=curve), of="cosine")
    assert _drawn(plot) == {"cdni": [(10, 0.5)]}
    assert plot.y_range == (-0.05, 1.05)


def test_a_row_has_one_colour_in_all_plots_of_its_part() -> None:
    runs = [gpt_run(), *(gpt_run("local_loss", rule={"blocks": n}, cosine=0.5) for n in (0, 1))]
    (bits,), (cosines,) = _plots(*runs), _plots(*runs, of="cosine")
    assert [line.colour for line in bits.lines] == [0, 1, 2]
    assert [line.colour for line in cosines.lines] == [1, 2]


def test_groups_of_the_page() -> None:
    runs = [gpt_run(), late(1), late(4), gpt_run("cdni", cosine=0.5)]
    found = {group.heading: [plot.title for plot in group.plots] for group in _groups(*runs)}
    assert found == {
        "Bits per character over lag": ["bits per character over lag"],
        "Over tokens seen": ["validation bits per character", "training bits per character"],
        "Over seconds of training": ["validation bits per character"],
        "Quality of the credit": ["cosine of the credit"],
        "Bits lost over the cosine of the credit": ["bits lost over the cosine of the credit"],
    }
    other = late(1, env={"device": "a processor", "threads": 1})
    assert [group.heading for group in _groups(gpt_run(), other)] == ["Over tokens seen"]


def test_several_seeds_are_thin_and_their_median_bold() -> None:
    (plot,) = _plots(*(gpt_run(bits=(3.0, 2.0 + k), seed=k) for k in (0, 1, 5)))
    assert [(line.faint, line.points[-1][1]) for line in plot.lines] == [
        *((True, 2.0), (True, 3.0), (True, 7.0)),
        (False, 3.0),
    ]
    (group,) = _groups(*(gpt_run(seed=k) for k in (0, 1)))[:1]
    assert group.note.startswith("Thin: every seed.")


# Which rows share a plot


def _many(optimizer: str, modules: int = 2) -> list[dict[str, Any]]:
    return [
        *(late(n, optimizer=optimizer, modules=modules) for n in (1, 4, 16)),
        *(gpt_run(m, optimizer=optimizer, modules=modules) for m in ("cdni", "local_loss", "head_gradient")),
    ]


def test_few_rows_share_one_plot() -> None:
    runs = [gpt_run(), gpt_run(optimizer="Muon"), *_many("AdamW")]
    late_rows = ["delayed (delay 1)", "delayed (delay 4)", "delayed (delay 16)"]
    assert _named(_plots(*runs)) == {
        "validation bits per character": [
            *("backprop", "backprop (Muon)", "cdni", "local_loss", *late_rows, "head_gradient"),
        ]
    }


def test_many_rows_are_divided_by_optimizer_each_with_its_synchronous_run() -> None:
    runs = [gpt_run(), gpt_run(optimizer="Muon"), *_many("AdamW"), late(4, optimizer="Muon")]
    found = _named(_plots(*runs))
    assert list(found) == ["validation bits per character: AdamW", "validation bits per character: Muon"]
    assert found["validation bits per character: Muon"] == ["backprop", "delayed (delay 4)"]
    assert len(found["validation bits per character: AdamW"]) == 7


def test_an_optimizer_without_synchronous_run_joins_the_first() -> None:
    runs = [gpt_run(), gpt_run(optimizer="Muon"), *_many("Muon"), late(4), late(4, optimizer="NAdam")]
    found = _named(_plots(*runs))
    assert found["validation bits per character: AdamW"] == [
        "backprop",
        "delayed (delay 4)",
        "delayed (NAdam, delay 4)",
    ]
    assert found["validation bits per character: Muon"][0] == "backprop"


def test_a_synchronous_run_that_nothing_is_held_against_has_a_plot_too() -> None:
    runs = [gpt_run(), gpt_run(optimizer="Muon"), *_many("AdamW"), late(2)]
    assert _named(_plots(*runs))["validation bits per character: the rest"] == ["backprop"]
    only = [gpt_run(optimizer=f"O{k}") for k in range(9)]
    assert [len(plot.lines) for plot in _plots(*only)] == [8]


def test_still_more_rows_are_divided_by_modules_then_by_credit() -> None:
    runs = [gpt_run(), *_many("AdamW"), *_many("AdamW", 4), *(late(n, modules=4) for n in (2, 3))]
    found = _named(_plots(*runs))
    title = "validation bits per character: "
    assert list(found) == [
        title + w for w in ("2 modules", "4 modules, credit at once", "4 modules, late gradients")
    ]
    assert found[title + "4 modules, credit at once"] == ["backprop", "cdni", "local_loss", "head_gradient"]
    assert len(found[title + "4 modules, late gradients"]) == 6


def test_microbatches_are_beside_the_synchronous_run_of_as_many() -> None:
    four = {"accumulate": 4}
    runs = [gpt_run(bits=(2.0,)), gpt_run(bits=(3.0,), config=four)]
    runs += [late(n) for n in range(1, 6)] + [late(n, config=four) for n in range(1, 6)]
    plots = _plots(*runs)
    assert [plot.title.split(": ")[1] for plot in plots] == ["no microbatches", "4 microbatches"]
    assert [_drawn(plot)["backprop"][0][1] for plot in plots] == [2.0, 3.0]
    assert len(plots[1].lines) == 6


def test_of_rows_that_nothing_divides_the_best_are_drawn() -> None:
    runs = [gpt_run(bits=(9.0,)), *(late(n, (2.0 + n / 100,)) for n in range(1, 12))]
    (table,) = language(*runs)
    (plot,) = language_plots(table)
    kept = [f"delayed (delay {n})" for n in range(1, 8)]
    assert _named([plot]) == {plot.title: ["backprop", *kept]}
    notes = {group.heading: group.note for group in language_groups(table)}
    assert notes["Over tokens seen"].endswith("4 rows with more bits per character are not drawn.")


def test_without_a_synchronous_run_rows_are_drawn_all_the_same() -> None:
    assert _named(_plots(late(1), late(4))) == {
        "validation bits per character": ["delayed (delay 1)", "delayed (delay 4)"]
    }
    assert _plots(gpt_run(curve=[])) == []


# Over lag


def _line(plot: Plot, name: str) -> Line:
    (line,) = [line for line in plot.lines if line.name == name]
    return line


def test_a_line_for_each_method_and_level_ones_for_what_has_no_lag() -> None:
    runs = [
        *(gpt_run(bits=(2.0 + k,), seed=k) for k in (0, 1)),
        *(late(n, (3.0 + n / 4 + k,), k) for n in (1, 4) for k in (0, 1)),
        late(1, (2.75,), config={"error_feedback": True}),
        gpt_run("local_loss", (2.25,)),
        gpt_run("late_correction", (2.125,), rule={"delay": 4}),
        gpt_run("cdni", (3.0,)),  # without lag, of which there is no other
    ]
    (plot,) = _plots(*runs, over="lag")
    assert [line.name for line in plot.lines] == [
        *("backprop", "local_loss", "delayed", "delayed (error feedback)", "late_correction"),
    ]
    assert _line(plot, "delayed").points == ((1.0, 3.75, 0.5, 0.5), (4.0, 4.5, 0.5, 0.5))
    assert _line(plot, "backprop").points == ((0.0, 2.5, 0.0, 0.0), (4.0, 2.5, 0.0, 0.0))
    assert _line(plot, "local_loss").points == ((0.0, 2.25, 0.0, 0.0), (4.0, 2.25, 0.0, 0.0))
    assert _line(plot, "late_correction").points == ((4.0, 2.125, 0.0, 0.0),)
    assert plot.ticks == (0.0, 1.0, 4.0)
    level = [_line(plot, name) for name in ("backprop", "local_loss")]
    assert [(line.marker, line.dash) for line in level] == [("", 3), ("", 1)]
    assert len({line.marker for line in plot.lines}) == 4
    assert {"0", "1", "4", "lag at each interface (updates)"} <= set(texts(plot))


def test_a_line_joins_lags_of_different_rates_each_at_its_best() -> None:
    runs = [
        *(gpt_run(bits=(bits,), config={"lr": lr}) for lr, bits in ((0.004, 2.5), (0.008, 2.0))),
        *(late(1, (bits,), config={"lr": lr}) for lr, bits in ((0.002, 2.25), (0.004, 2.75))),
        late(4, (3.0,), config={"lr": 0.001}),
    ]
    (plot,) = _plots(*runs, over="lag")
    assert [line.name for line in plot.lines] == ["backprop", "delayed"]
    assert [p[:2] for p in _line(plot, "delayed").points] == [(1.0, 2.25), (4.0, 3.0)]
    assert _line(plot, "backprop").points[0][1] == 2.0
    notes = {group.heading: group.note for group in _groups(*runs)}
    assert "Of several learning rates each point has" in notes["Bits per character over lag"]
    assert "learning rates" not in _groups(gpt_run(), late(1), late(4))[0].note


def test_curves_of_different_rates_are_named_by_them_where_nothing_else_differs() -> None:
    runs = [gpt_run(), *(late(1, config={"lr": lr}) for lr in (0.002, 0.004)), late(4, config={"lr": 0.001})]
    (plot,) = _plots(*runs)
    assert [line.name for line in plot.lines] == [
        *("backprop", "delayed (delay 1, lr 0.002)", "delayed (delay 1, lr 0.004)", "delayed (delay 4)"),
    ]


def test_of_many_rows_the_curves_are_at_the_best_rates() -> None:
    lags = range(1, 6)
    runs = [late(n, (2.0 + lr,), config={"lr": lr}) for n in lags for lr in (0.25, 0.125)]
    (plot,) = _plots(*runs)
    assert {name: points[-1][1] for name, points in _drawn(plot).items()} == {
        f"delayed (delay {n})": 2.125 for n in lags
    }
    notes = {group.heading: group.note for group in _groups(*runs)}
    assert notes["Over tokens seen"].endswith(
        "Of several learning rates each row has the one with the fewest bits."
    )
    assert len(_plots(*runs[:8])[0].lines) == 8  # for all of these there is room


def test_lags_count_in_updates() -> None:
    runs = [gpt_run(), late(1), late(4), late(8, config={"accumulate": 4})]
    (plot,) = _plots(*runs, over="lag")
    assert [p[0] for p in _line(plot, "delayed (4 microbatches)").points] == [2.0]
    assert plot.ticks == (0.0, 1.0, 2.0, 4.0)


def test_without_several_lags_there_is_no_plot_over_them() -> None:
    assert _plots(gpt_run(), late(1), gpt_run("late_correction", rule={"delay": 1}), over="lag") == []
    assert _plots(gpt_run(), gpt_run("local_loss", rule={"delay": 4}), late(1), over="lag") == []
    assert (
        len(_plots(gpt_run(), gpt_run("cdni"), gpt_run("cdni", rule={"delay": 4}), late(1), over="lag")) == 1
    )


def test_lags_of_many_rows_are_divided_and_parts_of_one_lag_left_out() -> None:
    runs = [gpt_run(), gpt_run(optimizer="Muon")]
    for name in ("AdamW", "Muon"):
        runs += [late(n, optimizer=name) for n in (1, 4)]
        runs += [late(1, config={"error_feedback": True}, optimizer=name)]
        runs += [gpt_run("local_loss", optimizer=name, modules=n) for n in (2, 4)]
        runs += [gpt_run("late_correction", optimizer=name, rule={"delay": n}) for n in (1, 4)]
    runs += [late(2, config={"accumulate": 2, "versions": n}) for n in (1, 2)]
    runs += [gpt_run("local_loss", rule={"blocks": n}) for n in (0, 2, 3, 4)]
    found = _named(_plots(*runs, over="lag"))
    title = "bits per character over lag: "
    assert list(found) == [title + "AdamW, 2 modules, no microbatches", title + "Muon"]
    assert "local_loss (4 modules)" in found[title + "Muon"]
    assert "delayed (PACI)" not in found[title + "AdamW, 2 modules, no microbatches"]


def test_runs_that_ended_early_have_no_place_over_lag() -> None:
    (plot,) = _plots(bad(gpt_run()), late(1), bad(late(4)), late(16), over="lag")
    assert [line.name for line in plot.lines] == ["delayed"]
    assert [p[0] for p in plot.lines[0].points] == [1.0, 16.0]
    assert _plots(bad(gpt_run()), bad(late(1)), bad(late(4)), over="lag") == []

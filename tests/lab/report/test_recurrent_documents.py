"""Tables, grids and plots of recurrent runs in the documents."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.report.helpers import filled, record
from tests.lab.report.recurrent import clocked_run, copy_run, text_run

METHODS = ("bptt", "dni", "dni_aux")


def _copies(*unrolls: int) -> list[dict[str, Any]]:
    return [copy_run(m, seed, u) for m in METHODS for seed in (0, 1) for u in unrolls]


def test_a_folder_of_several_lengths_is_two_tables(script: Any) -> None:
    text = filled(script, "<!-- table results/a -->", *_copies(3, 5))
    assert text.count("| method |") == 2
    assert "| bptt | 6 ± 0 (2) [8†] | 6 ± 0 (2) [8†] |" in text
    assert "| method | T | sequences to length 6 | time to length 6 | step | ratio to bptt | runs |" in text
    assert "*† as recalled from the paper, not read in a copy of it.*" in text


def test_times_can_be_left_out(script: Any) -> None:
    text = filled(script, "<!-- table results/a errors -->", *_copies(3, 5))
    assert "| method | T | sequences to length 6 | runs |" in text


def test_one_length_of_several_is_an_ordinary_table(script: Any) -> None:
    text = filled(script, "<!-- table results/a unroll=5 -->", *_copies(3, 5))
    assert "**copy · quick · lstm 1 layer × 32 · T=5 · 300 steps of 10**" in text
    assert text.count("| method |") == 1


def test_a_grid_has_what_was_reached(script: Any) -> None:
    text = filled(script, "<!-- grid results/a -->", *_copies(3), *(text_run(m) for m in METHODS))
    assert "| method | T=3 |" in text
    assert "| method | T=5 |" in text
    assert "| dni | 1.950 (1) [1.35†] |" in text
    both = filled(script, "<!-- grid results/a -->", *_copies(3), record())
    assert "| data, network, layers |" in both


@pytest.mark.parametrize(
    ("words", "label", "about"),
    [
        (
            "",
            "sequences seen",
            "Sequence length over sequences seen: bptt, dni, dni_aux, medians, for several T",
        ),
        (" over=seconds", "training time (s)", "Sequence length over training time"),
        (" over=unroll", "T, steps of an unroll", "Sequence length over the length of unrolls"),
        (" unroll=3", "sequences seen", "Sequence length over sequences seen: bptt, dni, dni_aux]"),
        (
            " over=seconds unroll=3 method=dni",
            "training time (s)",
            "Sequence length over training time (s): dni]",
        ),
    ],
)
def test_plots_of_a_sweep(script: Any, words: str, label: str, about: str) -> None:
    text = filled(script, f"<!-- plot results/a copy.svg{words} -->", *_copies(3, 5))
    picture = (script.ROOT / "docs/copy.svg").read_text(encoding="utf-8")
    assert picture.startswith("<svg width=")
    assert f">{label}</text>" in picture
    assert "var(" not in picture  # it knows no page
    assert f"![{about}" in text
    assert "](copy.svg)" in text


def test_plots_of_two_networks(script: Any) -> None:
    runs = [clocked_run(m) for m in ("bptt", "dni")]
    for of, label in (("", "accuracy of A (%)"), (" of=b_accuracy_pct", "accuracy of B (%)")):
        filled(script, f"<!-- plot results/a two.svg over=seconds{of} -->", *runs)
        assert f">{label}</text>" in (script.ROOT / "docs/two.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (" over=steps", "over=steps; accepted: data, seconds, unroll"),
        (" unroll=7", "holds 0 sweeps"),
        ("", "holds 2 sweeps"),
        (" data=mnist of=bits_per_char", "holds 0 sweeps"),
    ],
)
def test_what_cannot_be_plotted_is_said(script: Any, words: str, reason: str) -> None:
    runs = [*_copies(3, 5), copy_run(steps=999)] if not words else [*_copies(3, 5), clocked_run()]
    with pytest.raises(SystemExit, match=reason):
        filled(script, f"<!-- plot results/a p.svg{words} -->", *runs)

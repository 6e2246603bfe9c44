"""Tables and plots of language models in the documents, chosen by the words of a marker."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.report.helpers import filled, record
from tests.lab.report.language import gpt_run, late

RUNS = [
    gpt_run(bits=(3.0, 2.5)),
    gpt_run(bits=(3.0, 2.25), optimizer="Muon"),
    late(1, (3.5, 2.75)),
    late(4, (4.0, 3.0)),
    late(4, (4.0, 2.75), optimizer="NAdam"),
    late(1, (3.5, 2.5), optimizer="Muon"),
    gpt_run("local_loss", (3.0, 2.625), modules=4),
]


def test_a_table_without_times(script: Any) -> None:
    text = filled(script, "<!-- table results/a errors -->", *RUNS)
    assert "*Unless a row says otherwise: optimizer: AdamW; modules: 2; private blocks: 1.*" in text
    assert (
        "| method | bits per character, validation | difference to backprop, validation | bits per character, test "
        "| difference to backprop, test |" in text
    )
    assert "| delayed (delay 4) | 3.000 | +0.500 (+20.00 %) | 3.100 | +0.500 (+19.23 %) |" in text
    assert "| local_loss (4 modules) | 2.625 | +0.125 (+5.00 %) | 2.725 | +0.125 (+4.81 %) |" in text


CORRECTED = [
    gpt_run("late_correction", (3.0, bits), rule={"delay": 4, "weight": weight}, cosine=0.5, weight=0.2)
    for bits, weight in ((2.75, None), (3.0, 0.5))
]


def test_a_table_of_cosines_and_one_of_weights(script: Any) -> None:
    text = filled(
        script, "<!-- table results/a cosine method=backprop,late_correction -->", *RUNS, *CORRECTED
    )
    assert "| method | after block1 | after block2 | difference to backprop, validation |" not in text
    assert "| late_correction (weight by agreement) | +0.250 (+10.00 %) |" in text
    assert "after block1: 0.500; after block2: 0.500" in text  # in the caption, for both rows have it
    assert text.count("**cosine of the credit") == 1
    text = filled(script, "<!-- table results/a weight -->", *RUNS, *CORRECTED)
    assert "| 0.2 (by agreement) | 2.750 ← lowest | — |" in text
    assert "| 0.5 | 3.000 | +0.250 (+9.09 %) |" in text


@pytest.mark.parametrize("kind", ["cosine", "weight"])
def test_a_table_of_what_was_not_measured_says_so(script: Any, kind: str) -> None:
    with pytest.raises(SystemExit, match=f"holds nothing for a table of kind '{kind}'"):
        filled(script, f"<!-- table results/a {kind} -->", *RUNS)


@pytest.mark.parametrize(
    ("words", "label", "about"),
    [
        (
            "over=cosine",
            "bits per character above backprop",
            "Bits lost over the cosine of the credit: late_correction (weight by agreement), late_correction (weight 0.5)",
        ),
        (
            "over=weight",
            "weight of a late correction",
            "Bits per character over the weight of corrections: late_correction, weight by agreement",
        ),
    ],
)
def test_plots_of_credit_and_of_weights(script: Any, words: str, label: str, about: str) -> None:
    text = filled(script, f"<!-- plot results/a gpt.svg {words} -->", *RUNS, *CORRECTED)
    assert f">{label}</text>" in (script.ROOT / "docs/gpt.svg").read_text(encoding="utf-8")
    assert f"![{about}]" in text


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("optimizer=muon", ["backprop", "delayed (delay 1)"]),
        ("optimizer=muon,nadam", ["backprop", "delayed (NAdam, delay 4)", "delayed (delay 1)"]),
        ("modules=4", ["backprop", "backprop (Muon)", "local_loss"]),  # what has no cuts stays
        ("delay=1 optimizer=adamw", ["backprop", "delayed (delay 1)"]),
        ("method=local_loss,backprop optimizer=adamw", ["backprop", "local_loss"]),
        ("modules=2 error_feedback=true optimizer=adamw", ["backprop"]),
    ],
)
def test_words_choose_among_the_rows(script: Any, words: str, names: list[str]) -> None:
    text = filled(script, f"<!-- table results/a errors {words} -->", *RUNS)
    rows = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("| ")]
    assert rows[1:] == names


@pytest.mark.parametrize(
    ("words", "label", "about"),
    [
        (
            "",
            "tokens seen",
            "Validation bits per character over tokens seen: backprop, backprop (Muon), local_loss",
        ),
        (
            " over=seconds optimizer=muon",
            "training time (s)",
            "Validation bits per character over training time (s)",
        ),
        (
            " of=train_bits_per_char",
            "bits per character, training",
            "Training bits per character over tokens seen",
        ),
        (
            " over=lag optimizer=adamw,nadam",
            "lag at each interface (updates)",
            "Bits per character over lag: backprop",
        ),
    ],
)
def test_plots(script: Any, words: str, label: str, about: str) -> None:
    text = filled(script, f"<!-- plot results/a gpt.svg{words} -->", *RUNS)
    picture = (script.ROOT / "docs/gpt.svg").read_text(encoding="utf-8")
    assert f">{label}</text>" in picture
    assert "var(" not in picture
    assert f"![{about}" in text


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (" over=lag optimizer=muon", "holds 0 sweeps"),
        (" of=cosine", "holds 0 sweeps"),
        (" over=unroll", "holds 0 sweeps"),
        (" over=cosine", "holds 0 sweeps"),
        (" over=weight", "holds 0 sweeps"),
        (" over=tokens", "over=tokens; accepted: data, seconds, unroll, lag, cosine, weight"),
    ],
)
def test_what_cannot_be_plotted_is_said(script: Any, words: str, reason: str) -> None:
    with pytest.raises(SystemExit, match=reason):
        filled(script, f"<!-- plot results/a p.svg{words} -->", *RUNS)


def test_words_about_cuts_concern_other_networks_without_any(script: Any) -> None:
    with pytest.raises(SystemExit, match="holds no records"):
        filled(script, "<!-- table results/a modules=2 -->", record())

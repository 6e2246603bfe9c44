"""Tables of language models, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synthgrad.lab.report import Sheet, training_sheets, write_report
from synthgrad.lab.report.facets import common_facets, short_label
from synthgrad.lab.report.labels import row_label
from synthgrad.lab.report.language_models import language_sheet
from synthgrad.lab.report.tables import document_sheets, single_tables
from tests.lab.report.helpers import cells, frame, record, typed
from tests.lab.report.language import gpt_run, language, late
from tests.lab.report.recurrent import bad


def _sheet(*records: dict[str, Any]) -> Sheet:
    (table,) = language(*records)
    return language_sheet(table)


def _row(name: str, *records: dict[str, Any]) -> dict[str, str]:
    sheet = _sheet(*records)
    return cells(sheet, [row[0] for row in sheet.rows].index(name))


def _names(*records: dict[str, Any]) -> list[str]:
    return [row[0] for row in _sheet(*records).rows]


# Which runs stand in one table


def test_methods_optimizers_and_cuts_are_rows_of_one_table() -> None:
    runs = [
        gpt_run(bits=(2.0,), ms=5.0),
        gpt_run(optimizer="Muon"),
        late(1),
        late(4),
        late(1, optimizer="Muon"),
        late(1, config={"error_feedback": True}),
        gpt_run("local_loss", rule={"blocks": 0}),
        gpt_run("local_loss"),
        gpt_run("local_loss", modules=4),
        gpt_run("late_correction", rule={"delay": 4}),
        gpt_run("late_correction", rule={"delay": 4, "weight": 1.0}),
        gpt_run("late_correction", rule={"delay": 4, "recompute": True}),
    ]
    assert _names(*runs) == [
        "backprop",
        "backprop (Muon)",
        "local_loss (linear head)",
        "local_loss",
        "local_loss (4 modules)",
        "delayed (delay 1)",
        "delayed (delay 4)",
        "delayed (Muon, delay 1)",
        "delayed (delay 1, error feedback)",
        "late_correction (delay 4, weight 0.5)",
        "late_correction (delay 4, weight 1)",
        "late_correction (graph made anew, delay 4, weight 0.5)",
    ]
    assert _sheet(*runs).fitted().caption == (
        "Unless a row says otherwise: optimizer: AdamW; modules: 2; private blocks: 1.",
        "All rows: tokens: 3,840; runs: 1.",
    )


def test_what_all_rows_share_is_not_in_their_names() -> None:
    runs = [
        gpt_run(bits=(2.0,), ms=5.0),
        gpt_run("local_loss"),
        gpt_run("late_correction", rule={"delay": 1}),
    ]
    assert _names(*runs) == ["backprop", "local_loss", "late_correction (delay 1)"]
    assert _sheet(*runs).fitted().caption == (
        "All rows: optimizer: AdamW; tokens: 3,840; runs: 1.",
        "Unless a row says otherwise: modules: 2; private blocks: 1; weight: 0.5.",
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cell": {"modules": None, "at": ["block1", "block3"]}}, "cut after block1, block3"),
        ({"cell": {"engine": "plain"}}, "2 modules, plain loop"),
        ({"rule": {"blocks": 2}}, "2 modules, 2 private blocks"),
        (
            {"rule": {"warm_up": 9, "lr_factor": 3.0}},
            "2 modules, 1 private block, linear, lr ×3, from batch 9",
        ),
        ({"rule": {"share_of": 0.25}}, "2 modules, 1 private block, share of 0.25"),  # nobody foresaw it
        ({"config": {"accumulate": 4, "versions": 2}}, "2 modules, 1 private block, 4 microbatches, 2BW"),
        ({"config": {"accumulate": 4, "versions": 1}}, "2 modules, 1 private block, 4 microbatches, PACI"),
    ],
)
def test_whatever_is_particular_is_in_the_whole_name(changes: dict[str, Any], words: str) -> None:
    (run,) = typed([gpt_run("local_loss", **changes)])
    plain = row_label(typed([gpt_run("local_loss")])[0])
    assert plain == "local_loss (AdamW, 2 modules, 1 private block)"
    parts = set(row_label(run).removeprefix("local_loss (AdamW, ").removesuffix(")").split(", "))
    assert set(words.split(", ")) <= parts
    assert row_label(run) != plain


def test_names_that_would_be_the_same_without_their_settings_keep_them() -> None:
    one, other = typed([gpt_run(optimizer="AdamW"), gpt_run(config={"optimizer": None})])
    assert common_facets([one, other]) == {}
    assert (short_label(one, {}), short_label(other, {})) == ("backprop (AdamW)", "backprop")


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"lr": 0.004}},
        {"config": {"cosine": True}},
        {"config": {"lr_warm_up": 5}},
        {"config": {"precision": "bfloat16"}},
        {"steps": 60},
        {"batch_size": 16},
        {"cell": {"context": 32}},
        {"cell": {"tokens": "bpe", "vocabulary": 512}},
        {"tier": "full"},
    ],
)
def test_other_schedules_and_networks_make_other_tables(changes: dict[str, Any]) -> None:
    assert len(language(gpt_run(), late(1, **changes))) == 2


def test_the_same_updates_of_microbatches_stand_in_the_same_table() -> None:
    runs = [gpt_run(), gpt_run(config={"accumulate": 4}), late(4, config={"accumulate": 4, "lr_warm_up": 0})]
    assert _names(*runs) == ["backprop", "backprop (4 microbatches)", "delayed (delay 4, 4 microbatches)"]
    assert len(language(gpt_run(), gpt_run(config={"accumulate": 4}, steps=240))) == 2


def test_titles_say_network_and_updates() -> None:
    title = "gpt_trials · quick · shakespeare · gpt 4 blocks × 32, 2 heads · 30 updates of 8 × 16 characters · lr 0.002"
    assert _sheet(gpt_run()).title == _sheet(gpt_run(config={"accumulate": 4})).title == title
    other = gpt_run(
        cell={"tokens": "bpe", "vocabulary": 512, "tied": True},
        config={"cosine": True, "precision": "bfloat16"},
        steps=3000,
    )
    assert _sheet(other).title == (
        "gpt_trials · quick · shakespeare · gpt 4 blocks × 32, 2 heads · tied · 3,000 updates of 8 × 16 tokens (bpe 512)"
        " · lr 0.002 · cosine · bfloat16"
    )


def test_they_are_no_other_trainings() -> None:
    runs = [gpt_run(), record(), gpt_run(experiment="bench/gpt")]
    assert [table.title.split(" · ")[0] for table in single_tables(frame(runs))] == ["compare"]
    assert [sheet.title.split(" · ")[0] for sheet in training_sheets(runs)] == ["compare", "gpt_trials"]


def test_other_networks_say_how_they_are_updated_where_it_is_not_by_adam() -> None:
    config = record()["config"]
    named = [{}, {"optimizer": "Adam"}, {"optimizer": "Muon", "accumulate": 4, "error_feedback": True}]
    labels = [row_label(r) for r in typed([record(config=config | more) for more in named])]
    assert labels == ["backprop", "backprop", "backprop (Muon, 4 microbatches, error feedback)"]


# Figures


def test_difference_to_the_synchronous_run_of_the_same_optimizer() -> None:
    runs = [
        gpt_run(bits=(3.0, 2.5)),
        gpt_run(bits=(3.0, 2.25), optimizer="Muon"),
        late(1, (3.0, 2.75)),
        late(1, (3.0, 2.125), optimizer="Muon"),
        late(1, (3.0, 2.0), optimizer="NAdam"),
    ]
    found = {row[0]: cells(_sheet(*runs), k) for k, row in enumerate(_sheet(*runs).rows)}
    assert found["backprop (Muon)"]["bits per character, validation"] == "2.250"
    assert found["backprop (Muon)"]["bits per character, test"] == "2.350"
    assert {name: row["difference to backprop"] for name, row in found.items()} == {
        "backprop": "—",
        "backprop (Muon)": "—",
        "delayed (delay 1)": "+0.250",
        "delayed (Muon, delay 1)": "−0.125",
        "delayed (NAdam, delay 1)": "—",
    }


def test_differences_are_of_equal_seeds() -> None:
    ends = [(2.5, 2.75), (2.25, 3.0), (9.0, None), (None, 9.0)]
    runs = [gpt_run(bits=(a,), seed=k) for k, (a, _) in enumerate(ends) if a is not None]
    runs += [late(1, (b,), k) for k, (_, b) in enumerate(ends) if b is not None]
    assert _row("delayed (delay 1)", *runs)["difference to backprop"] == "+0.500 ± 0.250"
    assert _row("delayed (delay 1)", gpt_run(), late(1, seed=1))["difference to backprop"] == "—"


def test_updates_of_microbatches_have_a_reference_of_their_own() -> None:
    runs = [
        gpt_run(bits=(2.75,), ms=4.0, config={"accumulate": 4}),
        gpt_run(bits=(2.5,)),
        late(4, (3.0,), ms=6.0, config={"accumulate": 4}),
        late(4, (3.0,), ms=12.0),
        late(4, (3.0,), ms=5.0, config={"accumulate": 2}),
    ]
    row = _row("delayed (delay 4, 4 microbatches)", *runs)
    assert (row["difference to backprop"], row["ratio to backprop"]) == ("+0.250", "1.50 ×")
    for name, ratio in (("delayed (delay 4)", "1.20 ×"), ("delayed (delay 4, 2 microbatches)", "—")):
        row = _row(name, *runs)
        assert (row["difference to backprop"], row["ratio to backprop"]) == ("+0.500", ratio)


def test_times_that_cannot_be_compared_are_left_out() -> None:
    other = late(1, env={"device": "a processor", "threads": 1})
    row = _row("delayed (delay 1)", gpt_run(), other)
    assert "step" not in row
    assert "ratio to backprop" not in row


def test_bad_runs_stay() -> None:
    sheet = _sheet(gpt_run(), bad(late(1)), late(1, seed=1))
    assert cells(sheet, 1)["runs"] == "1, 1 not ok"
    assert sheet.bad == (False, True)
    assert sheet.failures == ("delayed (delay 1): diverged: the loss is not finite",)
    measured = {"val_bits_per_char": 2.0}  # by a run that diverged in the end
    alone = _sheet(bad(gpt_run()) | {"metrics": measured}, late(1))
    assert cells(alone, 1)["difference to backprop"] == "—"
    assert "ratio to backprop" not in alone.headings


def test_notes_are_of_what_the_table_has() -> None:
    def first_words(*runs: dict[str, Any]) -> list[str]:
        return [note.split()[0] for note in _sheet(*runs).notes]

    assert first_words(gpt_run()) == []
    assert first_words(gpt_run(), gpt_run("cdni")) == ["Difference:"]
    assert first_words(gpt_run(), gpt_run("local_loss"), late(1)) == ["Difference:", "A", "Delay:"]
    micro = late(4, config={"accumulate": 4, "versions": 2})
    assert first_words(micro) == ["Delay:", "Microbatches:", "2BW"]


def test_documents_may_leave_out_times() -> None:
    (sheet,) = document_sheets(typed([gpt_run(), late(1)]), times=False)
    assert not {"step", "ratio to backprop"} & set(sheet.headings)
    assert "difference to backprop" in sheet.headings


# The page


def test_a_section_of_the_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    runs = [gpt_run(cosine=None), late(1), late(4, optimizer="Muon"), gpt_run("cdni", cosine=0.5)]
    write_report(path, [*runs, late(4, config={"accumulate": 4})])
    page = path.read_text(encoding="utf-8")
    assert page.count("<section") == 1
    assert "A GPT predicts every next token of a text." in page
    assert "delayed (Muon, delay 4)" in page
    for heading in (
        "Bits per character over lag",
        "Over tokens seen",
        "Over seconds of training",
        "Quality of the credit",
    ):
        assert f"<h3>{heading}</h3>" in page
    assert "could not be made" not in page
    assert "differ in" not in page  # what rows are named by is no surprise

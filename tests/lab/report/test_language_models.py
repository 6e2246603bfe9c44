"""Tables of language models, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synthgrad.lab.report import Sheet, training_sheets, write_report
from synthgrad.lab.report.facets import common_facets, short_label
from synthgrad.lab.report.labels import row_label
from synthgrad.lab.report.language_models import DIFFERENCE, language_sheet
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
        "All rows: learning rate: 0.002; tokens: 3,840; runs: 1.",
        "Unless a row says otherwise: optimizer: AdamW; modules: 2; private blocks: 1.",
    )


def test_what_all_rows_share_is_not_in_their_names() -> None:
    runs = [
        gpt_run(bits=(2.0,), ms=5.0),
        gpt_run("local_loss"),
        gpt_run("late_correction", rule={"delay": 1}),
    ]
    assert _names(*runs) == ["backprop", "local_loss", "late_correction (delay 1)"]
    assert _sheet(*runs).fitted().caption == (
        "All rows: learning rate: 0.002; optimizer: AdamW; tokens: 3,840; runs: 1.",
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


def test_stages_that_run_free_have_a_row_of_their_own() -> None:
    exact = late(4, cell={"engine": "stages"})
    free = late(4, cell={"engine": "stages"}, config={"free_running": True})
    assert _names(gpt_run(), exact, free) == [
        "backprop",
        "delayed (stages, delay 4)",
        "delayed (stages, delay 4, free-running)",
    ]


def test_titles_say_network_and_updates() -> None:
    title = "gpt_trials · quick · shakespeare · gpt 4 blocks × 32, 2 heads · 30 updates of 8 × 16 characters"
    assert _sheet(gpt_run()).title == _sheet(gpt_run(config={"accumulate": 4})).title == title
    other = gpt_run(
        cell={"tokens": "bpe", "vocabulary": 512, "tied": True},
        config={"cosine": True, "precision": "bfloat16"},
        steps=3000,
    )
    assert _sheet(other).title == (
        "gpt_trials · quick · shakespeare · gpt 4 blocks × 32, 2 heads · tied · 3,000 updates of 8 × 16 tokens (bpe 512)"
        " · cosine schedule · bfloat16"
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


# Learning rates


def test_rows_of_different_rates_share_a_table_whose_names_leave_them_out() -> None:
    runs = [gpt_run(config={"lr": 0.008}), late(1, config={"lr": 0.004}), late(4, config={"lr": None})]
    sheet = _sheet(*runs)
    assert _names(*runs) == ["backprop", "delayed (delay 1)", "delayed (delay 4)"]
    assert [cells(sheet, k)["learning rate"] for k in range(3)] == ["0.008", "0.004", "—"]
    assert "learning rate" in sheet.fitted().main.headings
    assert _sheet(*runs).title == _sheet(gpt_run()).title


def test_rates_of_one_row_stand_together_ascending_and_the_best_is_marked() -> None:
    runs = [
        *(late(1, (bits,), config={"lr": lr}) for lr, bits in ((0.016, 2.75), (0.004, 2.5), (0.008, 2.625))),
        late(4, (2.125,), config={"lr": 0.002}),
        *(gpt_run(bits=(bits,), config={"lr": lr}) for lr, bits in ((0.004, 2.25), (0.002, 2.0))),
    ]
    sheet = _sheet(*runs)
    measured = {row[0]: cells(sheet, k) for k, row in enumerate(sheet.rows)}
    assert {name: row["bits per character, validation"] for name, row in measured.items()} == {
        "backprop (lr 0.002)": "2.000 ← lowest",
        "backprop (lr 0.004)": "2.250",
        "delayed (delay 1, lr 0.004)": "2.500 ← lowest",
        "delayed (delay 1, lr 0.008)": "2.625",
        "delayed (delay 1, lr 0.016)": "2.750",
        "delayed (delay 4)": "2.125",  # with one rate: no mark
    }
    assert list(measured)[:2] == ["backprop (lr 0.002)", "backprop (lr 0.004)"]
    # Backprop at its best rate is what all are held against.
    assert measured["delayed (delay 1, lr 0.016)"][DIFFERENCE] == "+0.750 (+37.50 %)"
    assert measured["backprop (lr 0.004)"][DIFFERENCE] == "—"
    assert any("at its best learning rate" in note for note in sheet.notes)


def test_a_rate_at_which_no_run_ended_well_is_not_the_best() -> None:
    diverged = bad(late(1, config={"lr": 0.004})) | {"metrics": {"val_bits_per_char": 1.0}}
    sheet = _sheet(gpt_run(), diverged, late(1, (2.5,), config={"lr": 0.002}))
    shown = [cells(sheet, k)["bits per character, validation"] for k in range(3)]
    assert shown == ["2.500", "2.500 ← lowest", "—"]


def test_rates_are_no_surprise_to_the_page(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, [gpt_run(), late(1, config={"lr": 0.004})])
    page = path.read_text(encoding="utf-8")
    assert page.count("<section") == 1
    assert "differ in" not in page


# Late corrections


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ({}, "late_correction (AdamW, 2 modules, 1 private block, weight 0.5)"),
        ({"weight": 0}, "late_correction (AdamW, 2 modules, 1 private block, weight 0)"),
        ({"weight": None}, "late_correction (AdamW, 2 modules, 1 private block, weight by agreement)"),
        (
            {"weight": None, "share": 0.25},
            "late_correction (AdamW, 2 modules, 1 private block, weight by agreement, 25 % of messages)",
        ),
        (
            {"weight": [1], "share": "?"},
            "late_correction (AdamW, 2 modules, 1 private block, weight 1, ? of messages)",
        ),
    ],
)
def test_weights_and_shares_in_words(rule: dict[str, Any], name: str) -> None:
    (run,) = typed([gpt_run("late_correction", rule=rule)])
    assert row_label(run) == name


def test_of_other_networks_weights_and_shares_are_said_too() -> None:
    rule = {"weight": None, "share": 0.125}
    (run,) = typed([record("late_correction", config={"rule": {"hidden": [], **rule}})])
    assert row_label(run) == "late_correction (weight by agreement, 12.5 % of messages)"


def test_the_weight_that_all_share_is_in_the_caption() -> None:
    rules = [{"delay": n, "weight": None, **more} for n, more in ((1, {}), (4, {}), (4, {"share": 0.25}))]
    runs = [gpt_run(), *(gpt_run("late_correction", rule=rule) for rule in rules)]
    assert _names(*runs)[1:] == [
        "late_correction (delay 1)",
        "late_correction (delay 4)",
        "late_correction (delay 4, 25 % of messages)",
    ]
    sheet = _sheet(*runs)
    assert "weight: by agreement." in sheet.fitted().caption[1]
    assert [note.split(":")[0] for note in sheet.notes[-3:]] == ["Weight", "By agreement", "Of messages"]


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
    assert {name: row[DIFFERENCE] for name, row in found.items()} == {
        "backprop": "—",
        "backprop (Muon)": "—",
        "delayed (delay 1)": "+0.250 (+10.00 %)",
        "delayed (Muon, delay 1)": "−0.125 (−5.56 %)",
        "delayed (NAdam, delay 1)": "—",
    }
    assert found["delayed (Muon, delay 1)"]["difference to backprop, test"] == "−0.125 (−5.32 %)"


def test_differences_are_of_equal_seeds() -> None:
    ends = [(2.5, 2.75), (2.25, 3.0), (9.0, None), (None, 9.0)]
    runs = [gpt_run(bits=(a,), seed=k) for k, (a, _) in enumerate(ends) if a is not None]
    runs += [late(1, (b,), k) for k, (_, b) in enumerate(ends) if b is not None]
    assert _row("delayed (delay 1)", *runs)[DIFFERENCE] == "+0.500 ± 0.250 (+21.67 %)"
    assert _row("delayed (delay 1)", gpt_run(), late(1, seed=1))[DIFFERENCE] == "—"


def test_updates_of_microbatches_have_a_reference_of_their_own() -> None:
    runs = [
        gpt_run(bits=(2.75,), ms=4.0, config={"accumulate": 4}),
        gpt_run(bits=(2.5,)),
        late(4, (3.0,), ms=6.0, config={"accumulate": 4}),
        late(4, (3.0,), ms=12.0),
        late(4, (3.0,), ms=5.0, config={"accumulate": 2}),
    ]
    row = _row("delayed (delay 4, 4 microbatches)", *runs)
    assert (row[DIFFERENCE], row["ratio to backprop"]) == ("+0.250 (+9.09 %)", "1.50 ×")
    for name, ratio in (("delayed (delay 4)", "1.20 ×"), ("delayed (delay 4, 2 microbatches)", "—")):
        row = _row(name, *runs)
        assert (row[DIFFERENCE], row["ratio to backprop"]) == ("+0.500 (+20.00 %)", ratio)


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
    assert cells(alone, 1)[DIFFERENCE] == "—"
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
    assert DIFFERENCE in sheet.headings


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

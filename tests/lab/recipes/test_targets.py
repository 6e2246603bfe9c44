"""The experiment of messages that are targets, and the search for its rates."""

from __future__ import annotations

from pathlib import Path

from synthgrad.lab.recipes import experiment_named
from synthgrad.lab.recipes.targets import ROWS
from tests.lab.cli.helpers import call, records_in


def test_rows_share_network_and_schedule() -> None:
    made = experiment_named("targets").runs("quick")
    assert [(run.method, run.payload.answers) for run in made] == [*ROWS]  # pyright: ignore[reportAttributeAccessIssue]
    assert len({(run.schedule.steps, run.schedule.batch_size, run.schedule.milestones) for run in made}) == 1
    assert {(run.payload.layers, run.payload.width) for run in made} == {(5, 256)}
    cells = [run.payload.cell() for run in made]
    assert [cell.get("answers", "gradients") for cell in cells] == [answers for _, answers in ROWS]
    assert sum("answers" in cell for cell in cells) == sum(answers != "gradients" for _, answers in ROWS)


def test_rates_are_chosen_on_held_out_examples() -> None:
    made = experiment_named("targets_search").runs("quick")
    assert {run.payload.hold_out for run in made} == {5000}  # pyright: ignore[reportAttributeAccessIssue]
    rows = {(run.method, run.payload.answers) for run in made}  # pyright: ignore[reportAttributeAccessIssue]
    assert rows == {*ROWS}
    assert len(made) == 4 * len(ROWS)


def test_all_rows_train(tmp_path: Path) -> None:
    assert call("run", "targets", "--tier", "smoke", "--quiet", "--threads", "1", "--out", tmp_path) == 0
    found = records_in(tmp_path)
    assert len(found) == len(ROWS)
    assert {record["status"] for record in found} == {"ok"}
    errors = {
        (r["method"], r["cell"].get("answers", "gradients")): r["metrics"]["test_error_pct"] for r in found
    }
    assert len(set(errors.values())) > 4, "what is sent down makes a difference"

"""A run that was stopped and goes on ends as if nothing had happened."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from synthgrad.lab.experiments import compare, snapshot
from synthgrad.lab.experiments.config import RunConfig
from synthgrad.lab.experiments.snapshot import Snapshot, snapshot_of
from synthgrad.lab.experiments.sweep import Listener, Sweep
from synthgrad.lab.experiments.train import blank, run

OF_THE_CLOCK = {"elapsed_s", "time_to_target_s"}


@pytest.fixture(autouse=True)
def _at_every_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot.Snapshot.__init__, "__defaults__", (0.0,))


def config(method: str, **over: Any) -> RunConfig:
    overrides = compare.Overrides(steps=60, batch_size=32, width=16, layers=3, **over)
    (made,) = compare.configs("smoke", "mnist-10k", [method], overrides=overrides)
    return dataclasses.replace(made, monitor_every=7)


def stop_at(step: int) -> Any:
    def progress(done: int) -> None:
        if done >= step:
            raise KeyboardInterrupt

    return progress


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    curve = [{k: v for k, v in p.items() if k not in OF_THE_CLOCK} for p in record["curve"]]
    metrics = {k: v for k, v in record["metrics"].items() if k not in OF_THE_CLOCK}
    return {"curve": curve, "metrics": metrics, "status": record["status"]}


@pytest.mark.parametrize(
    ("method", "over"),
    [
        ("backprop", {}),
        ("backprop", {"augment": True}),
        ("cdni", {}),
        ("cdni", {"update_prob": 0.5}),
        ("cdni", {"engine": "plain"}),
        ("stale", {}),
        ("sobolev", {}),
        ("local_loss", {}),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_end(method: str, over: dict[str, Any], tmp_path: Path) -> None:
    whole = run(config(method, **over))
    kept = dataclasses.replace(config(method, **over), snapshots=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run(kept, stop_at(35))
    assert [p.suffix for p in tmp_path.iterdir()] == [".pt"]
    record = run(kept)
    assert record["resumed_at"] == [30]
    assert timeless(record) == timeless(whole)
    assert record["time"]["train_s"] > 0
    assert not tmp_path.exists() or not list(tmp_path.iterdir())  # of a run that has ended nothing is kept


def test_a_snapshot_that_cannot_be_read_is_told_and_the_run_starts_anew(tmp_path: Path) -> None:
    kept = dataclasses.replace(config("cdni"), snapshots=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run(kept, stop_at(35))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="is no snapshot that can be read"):
        record = run(kept)
    assert record["resumed_at"] == []
    assert timeless(record) == timeless(run(config("cdni")))


def test_without_resume_a_sweep_starts_anew_and_touches_no_file_of_others(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    made = config("cdni")
    with pytest.raises(KeyboardInterrupt):
        run(dataclasses.replace(made, snapshots=str(folder)), stop_at(35))
    (folder / "mine.txt").write_text("keep")
    (record,) = Sweep([made], tmp_path).records(Listener())
    assert record["resumed_at"] == []
    assert [p.name for p in folder.iterdir()] == ["mine.txt"]


def test_with_resume_a_sweep_goes_on(tmp_path: Path) -> None:
    made = config("cdni")
    with pytest.raises(KeyboardInterrupt):
        run(dataclasses.replace(made, snapshots=str(tmp_path / "snapshots")), stop_at(35))
    (record,) = Sweep([made], tmp_path, resume=True).records(Listener())
    assert record["resumed_at"] == [30]


def test_runs_that_differ_have_snapshots_of_their_own(tmp_path: Path) -> None:
    paths = {
        snapshot_of(tmp_path, blank(c, 1)).path for c in (config("cdni"), config("cdni", update_prob=0.5))
    }
    assert len(paths) == 2


def test_nothing_is_written_before_it_is_time(tmp_path: Path) -> None:
    kept = Snapshot(tmp_path / "run.pt", every_s=1e9)
    kept.save(lambda: pytest.fail("asked for a state"))
    assert not list(tmp_path.iterdir())
    kept = Snapshot(tmp_path / "run.pt", every_s=0)
    kept.save(lambda: {"step": 3, "x": torch.ones(2)})
    state = kept.load("cpu")
    assert state is not None
    assert state["step"] == 3
    kept.drop()
    assert kept.load("cpu") is None

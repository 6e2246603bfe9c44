"""A run that is stopped and resumed ends exactly like one that is not stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from synthgrad.lab.training import sweep
from synthgrad.lab.training.run import Run
from synthgrad.lab.training.snapshot import INTERVAL_VARIABLE, SnapshotStore, run_name
from synthgrad.lab.training.sweep import Progress, Sweep
from synthgrad.lab.training.tasks import FeedForwardTask
from synthgrad.lab.training.train import empty_record, train
from tests.lab.runs import changed, compared

OF_THE_CLOCK = {"elapsed_s", "time_to_target_s"}


@pytest.fixture(autouse=True)
def _at_every_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTERVAL_VARIABLE, "0")


def config(method: str, **over: Any) -> Run:
    return changed(compared(method, steps=60, batch_size=32, width=16, layers=3, **over), monitor_every=7)


def stop_at(step: int) -> Any:
    def progress(done: int) -> None:
        if done >= step:
            raise KeyboardInterrupt

    return progress


def timeless(record: Mapping[str, Any]) -> dict[str, Any]:
    def kept(figures: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in figures.items() if not k.endswith(("_s", "_per_s"))}

    parts = {"curve": [kept(p) for p in record["curve"]], "metrics": kept(record["metrics"])}
    return parts | {k: record[k] for k in ("status", "error", "weights_sha256")}


def steps_in(folder: Path) -> set[str]:
    return {path.name.rsplit("-", 1)[1] for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("method", "over"),
    [
        ("backprop", {}),
        ("backprop", {"augment": True}),
        ("cdni", {}),
        ("cdni", {"update_prob": 0.5}),
        ("cdni", {"engine": "plain"}),
        ("cdni", {"engine": "layer-parallel"}),
        ("stale", {}),
        ("sobolev", {}),
        ("local_loss", {}),
        ("delayed", {}),
        ("cdni_unlock", {}),
    ],
)
@pytest.mark.parametrize(("chunk", "last"), [(10, 30), (4, 34)], ids=["at a point", "between points"])
def test_a_stopped_run_goes_on_to_the_same_end(
    chunk: int,
    last: int,
    method: str,
    over: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FeedForwardTask, "chunk", chunk)
    whole = train(config(method, **over))
    kept = dataclasses.replace(config(method, **over), snapshots=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        train(kept, stop_at(last + 1))
    saved = steps_in(tmp_path)
    assert len(saved) == 2  # the last two
    record = train(kept)
    assert [f"step{k}.pt" in saved for k in record["resumed_at"]] == [True]
    assert record["resumed_at"][0] >= last
    assert timeless(record) == timeless(whole)
    assert record["time"]["train_s"] > 0


def test_a_damaged_snapshot_is_told_and_the_one_before_it_is_used(tmp_path: Path) -> None:
    kept = dataclasses.replace(config("cdni"), snapshots=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        train(kept, stop_at(35))
    (file,) = (path for path in tmp_path.iterdir() if path.name.endswith("step40.pt"))
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 4
    file.write_bytes(raw)
    with pytest.warns(UserWarning, match=r"step40\.pt: is a damaged snapshot .*the one before it is used"):
        record = train(kept)
    assert record["resumed_at"] == [30]
    assert timeless(record) == timeless(train(config("cdni")))


def test_snapshots_that_cannot_be_read_are_told_and_the_run_starts_anew(tmp_path: Path) -> None:
    kept = dataclasses.replace(config("cdni"), snapshots=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        train(kept, stop_at(35))
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="is a damaged snapshot"):
        record = train(kept)
    assert record["resumed_at"] == []
    assert timeless(record) == timeless(train(config("cdni")))


def test_the_snapshot_of_another_network_fails_the_run_and_stays(tmp_path: Path) -> None:
    kept = dataclasses.replace(config("cdni"), snapshots=str(tmp_path))
    other = changed(kept, width=17)
    for one in (kept, other):
        with pytest.raises(KeyboardInterrupt):
            train(one, stop_at(10))
    name = run_name(empty_record(kept, 1))
    foreign = next(path for path in tmp_path.iterdir() if not path.name.startswith(name))
    mine = tmp_path / f"{name}-step50.pt"
    foreign.rename(mine)
    before = mine.read_bytes()
    record = train(kept)
    assert record["status"] == "failed"
    assert "step50.pt: is a snapshot of another run (cell" in record["error"]
    assert mine.read_bytes() == before


def test_a_run_whose_snapshots_cannot_be_written_ends_as_if_it_had_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    kept = dataclasses.replace(config("cdni"), snapshots=str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="no snapshot can be written") as told:
        record = train(kept)
    assert len(told) == 1
    assert timeless(record) == timeless(train(config("cdni")))


def test_without_resume_a_sweep_starts_anew_and_touches_no_file_of_others(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    made = config("cdni")
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(made, snapshots=str(folder)), stop_at(35))
    (folder / "mine.txt").write_text("keep")
    (record,) = Sweep([made], tmp_path).records(Progress())
    assert record["resumed_at"] == []
    assert [p.name for p in folder.iterdir()] == ["mine.txt"]


def test_snapshots_stay_until_the_record_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    made = config("cdni")
    with monkeypatch.context() as broken:
        broken.setattr(sweep, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            list(Sweep([made], tmp_path).records(Progress()))
    assert steps_in(tmp_path / "snapshots") == {"step50.pt", "step60.pt"}
    (record,) = Sweep([made], tmp_path, resume=True).records(Progress())
    assert record["resumed_at"] == [60]
    assert timeless(record) == timeless(train(made))
    assert [p.name for p in tmp_path.iterdir()] == ["results.jsonl"]


def test_with_resume_a_sweep_goes_on(tmp_path: Path) -> None:
    made = config("cdni")
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(made, snapshots=str(tmp_path / "snapshots")), stop_at(35))
    (record,) = Sweep([made], tmp_path, resume=True).records(Progress())
    assert record["resumed_at"] == [40]


def test_runs_that_differ_have_snapshots_of_their_own(tmp_path: Path) -> None:
    paths = {
        SnapshotStore(tmp_path, empty_record(c, 1)).path(3)
        for c in (config("cdni"), config("cdni", update_prob=0.5))
    }
    assert len(paths) == 2

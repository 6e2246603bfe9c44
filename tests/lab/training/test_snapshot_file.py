"""A snapshot is restored exactly: damaged ones are skipped with a warning, those of other runs are refused."""

from __future__ import annotations

import dataclasses
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from synthgrad.core import ConfigError
from synthgrad.lab.records import Record
from synthgrad.lab.training import snapshot_file
from synthgrad.lab.training.snapshot import (
    INTERVAL_VARIABLE,
    SnapshotStore,
    SnapshotWarning,
    delete_snapshots,
    interval_s,
)
from synthgrad.lab.training.snapshot_file import (
    DamagedSnapshotError,
    Fingerprint,
    read_snapshot,
    write_snapshot,
)

FORMS = {"0.weight": "float32 [2, 3]", "0.bias": "float32 [2]"}
RECORD = Record.of(
    {"method": "cdni", "seed": 0, "cell": {"data": "x", "layers": 3}, "steps": 10, "config": {"lr": 0.1}}
)
OWNER = Fingerprint({"method": "cdni", "lr": 0.1}, "abc", FORMS)
STATE = {"step": 4, "x": torch.arange(40.0), "name": "ü"}


class Pair:
    """A process and its peer, whose answers are fixed beforehand."""

    stages, launch = 2, "a"

    def __init__(self, stage: int, *others: Any) -> None:
        self.stage = stage
        self._others = list(others)

    def all_gather(self, value: Any) -> list[Any]:
        other = self._others.pop(0) if self._others else value
        return [value, other] if self.stage == 0 else [other, value]


def written(folder: Path, owner: Fingerprint = OWNER) -> Path:
    path = folder / "run-step4.pt"
    write_snapshot(path, owner, {"step": 4, "launch": ""}, STATE)
    return path


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    header, state = read_snapshot(written(tmp_path), OWNER, "cpu")
    assert (header["step"], header["synthgrad"], header["stages"]) == (4, snapshot_file.__version__, 1)
    assert torch.equal(state["x"], STATE["x"])
    assert (state["step"], state["name"]) == (4, "ü")
    assert [p.name for p in tmp_path.iterdir()] == ["run-step4.pt"]


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole, draws = path.read_bytes(), random.Random(0)
    places = {0, len(whole) - 1, *(draws.randrange(len(whole)) for _ in range(300))}
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draws.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DamagedSnapshotError):
            read_snapshot(path, OWNER, "cpu")
    path.write_bytes(whole)
    read_snapshot(path, OWNER, "cpu")


@pytest.mark.parametrize("cut", [0, 5, 19, 60, -33, -32, -1])
def test_a_file_that_was_cut_is_found(cut: int, tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DamagedSnapshotError):
        read_snapshot(path, OWNER, "cpu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"run": {"method": "dni", "lr": 0.1}}, "method dni, expected cdni"),
        ({"run": {"method": "cdni", "lr": 0.2}}, "lr 0.2, expected 0.1"),
        ({"run": {"method": "cdni", "lr": 0.1, "augment": True}}, "augment true, expected none"),
        ({"parameters": FORMS | {"0.bias": "float64 [2]"}}, r"0.bias float64 \[2\], expected float32 \[2\]"),
        ({"parameters": {"0.weight": FORMS["0.weight"]}}, "0.bias none, expected float32"),
        ({"stages": 2}, "number of stages 2, expected 1"),
        ({"stage": 1}, "stage 1, expected 0"),
        ({"data": "abd"}, "other data"),
    ],
)
def test_a_snapshot_of_another_run_is_refused_by_name(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = written(tmp_path, dataclasses.replace(OWNER, **change))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=words) as refused:
        read_snapshot(path, OWNER, "cpu")
    assert str(refused.value).startswith(f"{path}: is a snapshot of another run")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("FORMAT", 3, "format 3, expected 2"), ("__version__", "9", "synthgrad 9, expected")],
)
def test_a_snapshot_of_another_version_is_refused_by_name(
    name: str, value: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        other.setattr(snapshot_file, name, value)
        path = written(tmp_path)
    with pytest.raises(ConfigError, match=words):
        read_snapshot(path, OWNER, "cpu")


def test_code_in_a_snapshot_is_not_run(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "ran"),))

    write_snapshot(tmp_path / "bad.pt", OWNER, {"step": 4, "launch": ""}, {"x": Bad()})
    with pytest.raises(DamagedSnapshotError, match="posix.mkdir"):
        read_snapshot(tmp_path / "bad.pt", OWNER, "cpu")
    assert not (tmp_path / "ran").exists()


def kept(folder: Path, peers: Any = None, every_s: float = 0.0) -> SnapshotStore:
    snapshot = SnapshotStore(folder, RECORD, peers, every_s)
    snapshot.set_fingerprint(FORMS, "abc")
    return snapshot


def test_the_last_two_are_kept_and_a_bad_one_is_told(tmp_path: Path) -> None:
    snapshot = kept(tmp_path)
    for step in (3, 20, 100):
        snapshot.save(step, lambda step=step: {"step": step})
    assert {p.name.rsplit("-", 1)[1] for p in tmp_path.iterdir()} == {"step20.pt", "step100.pt"}
    last = snapshot.path(100)
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.warns(
        UserWarning, match=r"step100\.pt: is a damaged snapshot .*checksum.*one before it is used"
    ):
        assert kept(tmp_path).load("cpu") == {"step": 20}
    snapshot.path(20).write_bytes(b"")
    with pytest.warns(SnapshotWarning, match="is a damaged snapshot") as told:
        assert kept(tmp_path).load("cpu") is None
    assert ["starts from the beginning" in str(w.message) for w in told] == [False, True]


def test_a_bad_one_does_not_take_the_place_of_a_good_one(tmp_path: Path) -> None:
    (tmp_path / kept(tmp_path).path(0).name.replace("-step0", "")).write_bytes(b"of an earlier version")
    for step in (10, 20):
        kept(tmp_path).save(step, lambda step=step: {"step": step})
    kept(tmp_path).path(20).write_bytes(b"damaged")
    snapshot = kept(tmp_path)
    with pytest.warns(UserWarning, match="the one before it is used"):
        assert snapshot.load("cpu") == {"step": 10}
    snapshot.save(14, lambda: {"step": 14})
    assert sorted(p.name.rsplit("-", 1)[1] for p in tmp_path.glob("*-step*")) == ["step10.pt", "step14.pt"]
    assert len(list(tmp_path.iterdir())) == 3


def test_nothing_is_written_before_it_is_time(tmp_path: Path) -> None:
    kept(tmp_path, every_s=1e9).save(5, lambda: pytest.fail("asked for a state"))
    assert not list(tmp_path.iterdir())


def test_only_the_runs_own_files_are_dropped(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    for peers in (None, Pair(0), Pair(1)):
        kept(folder, peers).save(5, lambda: {"step": 5})
    assert len(list(folder.iterdir())) == 3
    (folder / "mine.txt").write_text("keep")
    delete_snapshots(folder, RECORD)
    assert [p.name for p in folder.iterdir()] == ["mine.txt"]
    (folder / "mine.txt").unlink()
    delete_snapshots(folder, RECORD)
    assert not folder.exists()


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")]
)
def test_a_snapshot_that_cannot_be_written_is_told_once_and_nothing_is_left(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise failure

    snapshot = kept(tmp_path)
    snapshot.save(1, lambda: {"step": 1})
    with monkeypatch.context() as disk:
        disk.setattr(snapshot_file.torch, "save", full)
        with pytest.warns(SnapshotWarning, match=r"no snapshot can be written \((No space left|Pytorch)"):
            snapshot.save(2, lambda: {"step": 2})
        snapshot.save(3, lambda: {"step": 3})  # not told again: warnings are errors here
    assert kept(tmp_path).load("cpu") == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == [snapshot.path(1).name]


@pytest.mark.parametrize(("given", "seconds"), [("", 60.0), ("2.5", 2.5), ("0", 0.0)])
def test_the_environment_says_how_often(given: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTERVAL_VARIABLE, given)
    assert interval_s() == seconds


@pytest.mark.parametrize("given", ["often", "-1", "nan"])
def test_a_bad_interval_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTERVAL_VARIABLE, given)
    with pytest.raises(ConfigError, match=f"{INTERVAL_VARIABLE}={given}: expected seconds"):
        interval_s()


# Several processes


def test_the_last_step_that_all_have_is_gone_on_from_and_later_ones_are_removed(tmp_path: Path) -> None:
    snapshot = kept(tmp_path, Pair(0))
    for step in (10, 20):
        snapshot.save(step, lambda step=step: {"step": step})
    there = (None, [(10, "a")])
    with pytest.warns(UserWarning, match=r"step20\.pt: not every stage has saved this step; step 10"):
        assert kept(tmp_path, Pair(0, there)).load("cpu") == {"step": 10}
    assert not snapshot.path(20).exists()
    assert snapshot.path(10).exists()


def test_parts_of_different_starts_are_never_put_together(tmp_path: Path) -> None:
    kept(tmp_path, Pair(1)).save(10, lambda: {"step": 10})
    with pytest.warns(UserWarning, match="no step that every stage has saved"):
        assert kept(tmp_path, Pair(1, (None, [(10, "b")]))).load("cpu") is None


def test_what_one_process_refuses_all_refuse(tmp_path: Path) -> None:
    kept(tmp_path, Pair(0)).save(10, lambda: {"step": 10})
    with pytest.raises(ConfigError, match="of another run"):
        kept(tmp_path, Pair(0, ("it is of another run", []))).load("cpu")


def test_processes_ask_each_other_only_when_it_may_be_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("synthgrad.lab.training.snapshot.time.monotonic", lambda: now[0])
    asked: list[int] = []
    saved: list[int] = []

    class Counted(Pair):
        def all_gather(self, value: Any) -> list[Any]:
            asked.append(step)
            return [value, -1.0]

    snapshot = kept(tmp_path, Counted(0), every_s=60.0)
    for step in range(10, 2001, 10):
        now[0] = 0.1 * step  # a tenth of a second each: due every 600 steps
        snapshot.save(step, lambda step=step: saved.append(step) or {"step": step})
    assert saved == [600, 1200, 1800]
    assert len(asked) <= 8

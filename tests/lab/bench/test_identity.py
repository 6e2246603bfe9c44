"""A line is the same line in every version: `--resume` on the committed folders finds nothing to do.

`identities.json` holds, for command lines, a sum over the identities of the lines that they declare, as the version made
them that measured the committed records, and how many of these the folder of that name holds.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from synthgrad.lab.bench import base
from synthgrad.lab.bench.base import Bench
from synthgrad.lab.bench.networks import bench as networks
from synthgrad.lab.bench.pipeline import bench as pipeline
from synthgrad.lab.bench.survival import chaos
from synthgrad.lab.records import FILE, Record, identity, read
from tests.lab.cli.helpers import call

ROOT = Path(__file__).parents[3] / "results"
PINNED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "identities.json").read_text())
COMMITTED = {line: pinned for line, pinned in PINNED.items() if pinned["folder"]}

#: Versions of libraries stand in the lines of networks: this one in all of them.
VERSION = "1"


@pytest.fixture(autouse=True)
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Declare the same lines on every machine: with MNIST and a link, and with the libraries of one version."""
    monkeypatch.setattr(networks, "_version", lambda library: VERSION)
    for module in (pipeline, chaos):
        monkeypatch.setattr(module, "unavailable_reason", lambda: None)
    monkeypatch.setattr(pipeline, "load", lambda *args: None)
    monkeypatch.setattr("synthgrad.lab.bench.layer_parallel.load", lambda *args: None)


def declared(line: str, monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """Return the lines that a command declares."""
    found: list[Record] = []

    def sweep(benchmark: Any, scope: Any, *args: Any, **options: Any) -> Iterator[Record]:
        found.extend(line for setting in benchmark.settings(scope) for line in setting.lines)
        return iter(())

    with monkeypatch.context() as patched:
        patched.setattr(base, "sweep", sweep)
        assert call(*line.split(), "--device", "cpu", "--quiet") == 0
    return found


def committed(folder: str) -> list[Record]:
    """Return the records of a committed folder, with the version of libraries that the tests have."""
    (path,) = (ROOT / folder).glob(f"*/{FILE}")
    records, problems = read(path)
    assert not problems
    lines = [record.line() for record in records]
    for line in lines:
        if line["experiment"] == "bench/networks":
            line["config"] = {**line["config"], "library_version": VERSION}
    return [Record.of(line) for line in lines]


@pytest.mark.parametrize("line", PINNED)
def test_a_command_declares_the_lines_that_it_always_declared(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    identities = {identity(record) for record in declared(line, monkeypatch)}
    assert len(identities) == PINNED[line]["num"]
    assert hashlib.sha256("\n".join(sorted(identities)).encode()).hexdigest()[:16] == PINNED[line]["digest"]


@pytest.mark.parametrize("line", COMMITTED)
def test_a_committed_line_is_known(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {identity(record) for record in committed(COMMITTED[line]["folder"])}
    made = {identity(record) for record in declared(line, monkeypatch)}
    assert len(made & known) == COMMITTED[line]["known"]


def test_every_committed_folder_is_looked_at() -> None:
    assert {pinned["folder"] for pinned in COMMITTED.values()} == {p.name for p in ROOT.glob("bench_*")}


@pytest.mark.parametrize(
    "line", [line for line, pinned in COMMITTED.items() if pinned["known"] == pinned["num"]]
)
def test_resuming_a_committed_folder_measures_nothing(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Bench[Any, Any, Any], scope: Any, size: Any, *rest: Any) -> Iterator[Record]:
        raise AssertionError(f"{self.label(scope, size)} is measured again")

    folder = COMMITTED[line]["folder"]
    (path,) = (ROOT / folder).glob(f"*/{FILE}")
    if folder == "bench_networks":
        (tmp_path / FILE).write_text("".join(json.dumps(r.line()) + "\n" for r in committed(folder)))
    else:
        shutil.copy(path, tmp_path / FILE)
    before = (tmp_path / FILE).read_bytes()
    monkeypatch.setattr(Bench, "_records", refuse)
    assert call(*line.split(), "--device", "cpu", "--quiet", "--resume", "--out", tmp_path) == 0
    assert (tmp_path / FILE).read_bytes() == before

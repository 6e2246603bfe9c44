"""``bench damage``: what becomes of an input is told apart, and nothing is gone on with in silence."""

from __future__ import annotations

import random
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from synthgrad.core import DataError
from synthgrad.lab.bench.base import choose
from synthgrad.lab.bench.declarations import DAMAGE
from synthgrad.lab.bench.survival import damage as bench_damage
from synthgrad.lab.bench.survival import damaged_inputs
from synthgrad.lab.bench.survival.damage import INPUTS, DamageBench
from synthgrad.lab.bench.survival.damaged_inputs import Input, damaged, try_one
from synthgrad.lab.cli.damaged_lines import COMMAND_LINES


def _written(folder: Path) -> Path:
    (folder / "input").write_bytes(b"whole")
    return folder / "input"


def _raise(error: BaseException) -> Any:
    raise error


def _warn(_: Path) -> int:
    warnings.warn("not as usual", stacklevel=1)
    return 2


READERS: dict[str, tuple[Any, bool]] = {
    "refused": (lambda _: _raise(DataError("in a line")), True),
    "warned": (_warn, True),
    "unchanged": (lambda _: 1, True),
    "as_given": (lambda _: 2, False),
    "silently_wrong": (lambda _: 2, True),
    "traceback": (lambda _: _raise(IndexError("three")), True),
    "hang": (lambda _: time.sleep(60), True),
}


@pytest.mark.parametrize("outcome", READERS)
def test_outcomes_are_told_apart(outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damaged_inputs, "_PATIENCE_S", 0.05)
    read, summed = READERS[outcome]
    sort = Input("x", _written, read, summed)
    assert try_one(sort, _written(tmp_path), b"whole", 1, random.Random(0))[0] == outcome


def test_an_error_of_several_lines_is_a_fault(tmp_path: Path) -> None:
    sort = Input("x", _written, lambda _: _raise(DataError("two\nlines")))
    assert try_one(sort, _written(tmp_path), b"whole", 1, random.Random(0))[0] == "traceback"


def test_damage_is_drawn_and_differs() -> None:
    content = bytes(range(256)) * 4
    one, other = ([damaged(content, random.Random(seed)) for _ in range(1)] for seed in (3, 3))
    assert one == other
    draws = random.Random(0)
    made = [damaged(content, draws) for _ in range(60)]
    assert sum(m != content for m in made) >= 55
    assert {len(m) < len(content) for m in made} == {True, False}
    assert any(len(m) > len(content) for m in made)


@pytest.mark.parametrize("sort", [*INPUTS, *COMMAND_LINES], ids=lambda sort: sort.name)
def test_no_damage_is_gone_on_with_in_silence(sort: Input, tmp_path: Path) -> None:
    path = sort.make(tmp_path)
    content, whole, draws = path.read_bytes(), sort.read(path), random.Random(1)
    found = [try_one(sort, path, content, whole, draws) for _ in range(40)]
    assert not [words for outcome, words in found if outcome in ("silently_wrong", "traceback", "hang")]
    assert {outcome for outcome, _ in found} & {"refused", "warned"}


@pytest.mark.parametrize(("tier", "total"), [("smoke", 200), ("quick", 10_000)])
def test_a_tier_has_so_many_inputs(tier: str, total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_damage, "try_one", lambda *args: ("traceback", "oh"))
    bench = DamageBench()
    records = [r for s in bench.settings(choose(DAMAGE, tier)) for r in s.measure()]
    assert sum(r.metrics["inputs"] for r in records) == total
    assert [r.cell["input"] for r in records] == [sort.name for sort in INPUTS]
    assert all(r.metrics["traceback"] == r.metrics["inputs"] for r in records)
    assert {r.status for r in records} == {"failed"}
    assert "are faults, the first: oh" in records[0].error

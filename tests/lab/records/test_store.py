"""Records: what is appended is read again, whatever happened to the file in between."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgrad.core import ConfigError
from synthgrad.lab.records import (
    FILE,
    SCHEMA,
    WriteError,
    append,
    finished,
    identity,
    open_folder,
    read,
    store,
    write_whole,
)


def _record(**changes: Any) -> dict[str, Any]:
    record = {
        "schema": SCHEMA,
        "experiment": "compare",
        "tier": "quick",
        "method": "cdni",
        "seed": 0,
        "cell": {"data": "mnist", "layers": 4},
        "steps": 10,
        "batch_size": 256,
        "metrics": {"test_error_pct": 1.5},
        "status": "ok",
        "error": None,
        "config": {"lr": 3e-4, "milestones": [0.6, 0.8]},
    }
    return record | changes


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / FILE
    written = [_record(seed=k, error=f"line\nbreak {k} \u2028 ü") for k in range(3)]
    for record in written:
        append(path, record)
    assert read(path) == (written, [])
    assert len(path.read_text(encoding="utf-8").split("\n")) == 4


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=40)
@given(st.lists(_JSON, min_size=1, max_size=3))
def test_round_trip_of_anything(tmp_path_factory: pytest.TempPathFactory, values: list[Any]) -> None:
    path = tmp_path_factory.mktemp("any") / FILE
    for value in values:
        append(path, {"schema": SCHEMA, "value": value})
    records, problems = read(path)
    assert [r["value"] for r in records] == values
    assert problems == []


def test_append_never_rewrites(tmp_path: Path) -> None:
    path = tmp_path / FILE
    append(path, _record(seed=0))
    before = path.read_bytes()
    append(path, _record(seed=1))
    assert path.read_bytes().startswith(before)


@pytest.mark.parametrize(
    "half", ['{"schema": 1, "meth', '{"schema": 1, "error": "\u00fc'], ids=["text", "inside ü"]
)
def test_half_a_line_does_not_swallow_the_next_record(half: str, tmp_path: Path) -> None:
    path = tmp_path / FILE
    append(path, _record(seed=0))
    with path.open("ab") as file:
        file.write(half.encode() if half.isascii() else half.encode()[:-1])
    append(path, _record(seed=1))
    records, problems = read(path)
    assert [r["seed"] for r in records] == [0, 1]
    assert len(problems) == 1
    assert "line 2" in problems[0]


def test_whole_line_without_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text(json.dumps(_record(seed=0)))
    append(path, _record(seed=1))
    records, problems = read(path)
    assert ([r["seed"] for r in records], problems) == ([0, 1], [])


@pytest.mark.parametrize(
    "line",
    [
        '{"schema": 2, "method": "dni"}',
        '{"method": "dni"}',
        "[1, 2]",
        "null",
        '"text"',
        "garbage",
        "{",
        "\x00\x00",
    ],
    ids=["newer", "no schema", "list", "null", "string", "garbage", "open", "zeros"],
)
def test_another_line_is_left_out_with_a_message(line: str, tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text(f"{json.dumps(_record())}\n{line}\n{json.dumps(_record(seed=1))}\n")
    records, problems = read(path)
    assert [r["seed"] for r in records] == [0, 1]
    assert len(problems) == 1
    assert f"{path}, line 2" in problems[0]
    assert "left out" in problems[0]


def test_bytes_that_are_no_text_are_left_out_with_a_message(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(b"\xff\xfe\xfd\n")
    records, problems = read(path)
    assert (records, len(problems)) == ([], 1)


@pytest.mark.parametrize("content", ["", "\n", " \n\n"])
def test_empty_file_has_nothing(content: str, tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text(content)
    assert read(path) == ([], [])


def test_missing_file_has_nothing(tmp_path: Path) -> None:
    assert read(tmp_path / FILE) == ([], [])


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    path = tmp_path / FILE
    append(
        path,
        _record(
            metrics={"a": math.nan, "b": math.inf, "c": 1.5},
            curve=[{"loss": -math.inf}, {"loss": 2}],
            config={"betas": (math.nan, 2)},
        ),
    )
    text = path.read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    (record,), _ = read(path)
    assert record["metrics"] == {"a": None, "b": None, "c": 1.5}
    assert record["curve"] == [{"loss": None}, {"loss": 2}]
    assert record["config"] == {"betas": [None, 2]}


def test_append_leaves_the_record_alone(tmp_path: Path) -> None:
    record = _record(metrics={"a": math.inf})
    append(tmp_path / FILE, record)
    assert record["metrics"] == {"a": math.inf}


def test_identity_survives_the_file(tmp_path: Path) -> None:
    record = _record(config={"milestones": (0.6, 0.8), "lr": 1e-3}, cell={"at": (), "layers": None})
    append(tmp_path / FILE, record)
    (found,), _ = read(tmp_path / FILE)
    assert identity(found) == identity(record)


def test_identity_does_not_depend_on_the_outcome_or_the_order_of_keys() -> None:
    other = dict(reversed(_record(metrics={}, status="failed", error="x", env={"threads": 2}).items()))
    assert identity(other) == identity(_record())


@pytest.mark.parametrize(
    "change",
    [
        {"experiment": "other"},
        {"tier": "full"},
        {"method": "dni"},
        {"seed": 1},
        {"cell": {"data": "mnist", "layers": 3}},
        {"steps": 11},
        {"batch_size": 128},
        {"config": {"lr": 1e-3}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_identity_tells_runs_apart(change: dict[str, Any]) -> None:
    assert identity(_record(**change)) != identity(_record())


@pytest.mark.parametrize(
    ("status", "done"), [("ok", True), ("diverged", True), ("failed", False), (None, False)]
)
def test_what_need_not_be_done_again(status: str | None, done: bool) -> None:
    record = _record(status=status)
    assert finished([record]) == ({identity(record)} if done else set())


def test_open_folder_makes_it(tmp_path: Path) -> None:
    path = open_folder(tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b" / FILE
    assert path.read_bytes() == b""


def test_open_folder_keeps_what_is_there(tmp_path: Path) -> None:
    append(tmp_path / FILE, _record())
    assert read(open_folder(tmp_path))[0] == [_record()]


def test_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out .*file: cannot be written"):
        open_folder(tmp_path / "file")


def test_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        open_folder(tmp_path / "file" / "below")


def test_records_that_are_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        open_folder(tmp_path)


def test_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # root may write anywhere: chmod would prove nothing
    with pytest.raises(ConfigError, match=r"cannot be written \(Permission denied\)"):
        open_folder(tmp_path / "locked")


def _fill_up(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Have the disk take so many more bytes."""

    def nearly_full(file: Any, content: bytes) -> None:
        file.write(content[:room])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "_write_all", nearly_full)


@pytest.mark.parametrize("room", [0, 7])
def test_a_full_disk_leaves_the_records_as_they_were(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / FILE
    append(path, _record(seed=0))
    before = path.read_bytes()
    with monkeypatch.context() as disk:
        _fill_up(disk, room)
        with pytest.raises(WriteError, match=r"a record cannot be written \(No space left on device\)"):
            append(path, _record(seed=1))
    assert path.read_bytes() == before
    append(path, _record(seed=1))
    assert [r["seed"] for r in read(path)[0]] == [0, 1]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "page.html", "first")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_whole(tmp_path / "page.html", "second")
    assert (tmp_path / "page.html").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_in_place_of_records_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(ConfigError, match=r"cannot be written \(Is no regular file\)"):
        open_folder(tmp_path)
    assert read(tmp_path / FILE) == (
        [],
        [f"{tmp_path / FILE}: cannot be read (Is no regular file), left out"],
    )
    with pytest.raises(OSError, match="Is no regular file"):
        write_whole(tmp_path / FILE, "text")
    assert (tmp_path / FILE).is_fifo()


@pytest.mark.parametrize(
    ("before", "after"), [('"seed": 1', '"seed": 7'), ("1.5", "1.4"), ('"seed": 1, ', ""), ("mnist", "mnixt")]
)
def test_a_record_that_was_changed_is_told(before: str, after: str, tmp_path: Path) -> None:
    path = tmp_path / FILE
    for seed in (0, 1, 2):
        append(path, _record(seed=seed, metrics={"test_error_pct": 1.5, "ü": math.nan}))
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace(before, after), lines[2]]), encoding="utf-8")
    records, problems = read(path)
    assert problems == [f"{path}, line 2: is not as it was written, kept"]
    assert len(records) == 3
    assert all("sum" not in r for r in records)


def test_records_of_before_there_were_sums_are_read_without_a_word(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(_record()))
    assert read(tmp_path / FILE) == ([_record()], [])


def test_of_many_changed_records_ten_are_named(tmp_path: Path) -> None:
    path = tmp_path / FILE
    for seed in range(12):
        append(path, _record(seed=seed))
    path.write_text(path.read_text().replace("cdni", "dni"))
    records, problems = read(path)
    assert {r["method"] for r in records} == {"dni"}
    assert problems[10:] == [f"{path}: and 2 more lines, kept"]


@pytest.mark.parametrize("written", [0, 10, None])
def test_an_interrupt_in_the_middle_of_a_line_takes_it_back_and_one_at_its_end_does_not(
    written: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / FILE
    append(path, _record())
    before = path.read_bytes()

    def interrupted(file: Any, content: bytes) -> None:
        file.write(content[:written])
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "_write_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        append(path, _record(seed=1))
    records, problems = read(path)
    assert problems == []
    assert [r.seed for r in records] == ([0, 1] if written is None else [0])
    assert path.read_bytes().startswith(before)


def test_an_interrupt_while_the_disk_is_waited_for_loses_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / FILE
    append(path, {"schema": 1, "experiment": "compare", "method": "dni", "status": "ok"})
    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        append(path, {"schema": 1, "experiment": "compare", "method": "cdni", "status": "ok"})
    assert [r.method for r in read(path)[0]] == ["dni", "cdni"]

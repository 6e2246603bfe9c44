"""Calling the command line in this process, and modules of factories for it to find."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from synthgrad.lab.cli.main import main

#: A comparison of seconds.
SMALL = [
    *("compare", "--steps", "12", "--batch-size", "64", "--width", "16", "--layers", "3"),
    *("--methods", "backprop,cdni", "--device", "cpu", "--threads", "1"),
]
RECORD_KEYS = {
    *("schema", "experiment", "tier", "method", "seed", "cell", "steps", "batch_size", "metrics", "time"),
    *("curve", "status", "error", "config", "env"),
}


def call(*arguments: object) -> int:
    """Return the exit status of a call."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code if isinstance(stop.value.code, int) else 1


def write_module(name: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a module into a folder, make that the working directory, and return the module's name."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def records_in(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]

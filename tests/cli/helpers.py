"""Calling the command line in this process, and modules of factories for it to find."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from synthgrad.cli.main import main


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

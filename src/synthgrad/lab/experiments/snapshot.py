"""Snapshots of a run that is under way, so that one that was stopped goes on where it was."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .names import run_name

__all__ = ["Snapshot", "snapshot_of"]

State = dict[str, Any]


def snapshot_of(folder: Path, record: Mapping[str, Any]) -> Snapshot:
    """Return the snapshot of a run in a folder; another one for runs that differ in any setting."""
    return Snapshot(folder / f"{run_name(record)}.pt")


class Snapshot:
    """The state of one run in a file, replaced now and then; no run loses more than that time.

    Args:
        path: of the file; its folder is made when it is first written.
        every_s: seconds between two writings, at least. Short runs write none.
    """

    def __init__(self, path: Path, every_s: float = 60.0) -> None:
        self.path = path
        self.every_s = every_s
        self._last = time.monotonic()

    def load(self, device: str) -> State | None:
        """Return what was saved, on the device; None if nothing was, or if it cannot be read, with a warning."""
        if not self.path.exists():
            return None
        try:
            return torch.load(self.path, map_location=device, weights_only=True)
        except Exception as error:  # cut short by a full disk, written by another version
            reason = (str(error).splitlines() or [""])[0]
            warnings.warn(
                f"{self.path}: is no snapshot that can be read ({reason}); the run starts anew", stacklevel=2
            )
            return None

    def save(self, make: Callable[[], State]) -> None:
        """Write a state if it is time to; ``make`` is only called then. The file changes whole or not at all."""
        if time.monotonic() - self._last < self.every_s:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save(make(), partial)
        partial.replace(self.path)
        self._last = time.monotonic()

    def drop(self) -> None:
        """Remove the file, of a run that has ended or that is to start anew; the folder too when it is empty."""
        self.path.unlink(missing_ok=True)
        self.path.with_suffix(".partial").unlink(missing_ok=True)
        if self.path.parent.is_dir() and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()

"""The snapshots of a run that is under way, so that one that was stopped goes on where it was.

Where a network is spread over processes, each writes the part of the state that it has, all of the same step, and the
last step of which every part is there and whole is gone on from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from ...core import ConfigError
from ..records import Record, identity
from .snapshot_file import DamagedSnapshotError, Fingerprint, State, read_snapshot, write_snapshot

__all__ = [
    "INTERVAL_VARIABLE",
    "RunProcesses",
    "SingleProcess",
    "SnapshotStore",
    "SnapshotWarning",
    "delete_snapshots",
    "interval_s",
    "run_name",
]

#: Environment variable: seconds between two snapshots of a run.
INTERVAL_VARIABLE = "SYNTHGRAD_SNAPSHOT_S"
_DEFAULT_INTERVAL_S = 60.0
_KEPT = 2


class SnapshotWarning(UserWarning):
    """A snapshot is damaged, or could not be written; the run goes on."""


class RunProcesses(Protocol):
    """The processes that run a network together.

    Attributes:
        stage, stages: number of this process, and how many there are.
        launch: a name that all of them share, another one for every start.
    """

    stage: int
    stages: int
    launch: str

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values that all processes gave, by stage. Blocks; all must call it."""
        ...


class SingleProcess:
    """A run in one process."""

    stage, stages, launch = 0, 1, ""

    def all_gather(self, value: Any) -> list[Any]:
        """Return the value, as that of the only process."""
        return [value]


def interval_s() -> float:
    """Return the seconds between two snapshots: 60, or what the environment says.

    Raises:
        ConfigError: if that is no number from 0 up.
    """
    given = os.environ.get(INTERVAL_VARIABLE, "")
    if not given:
        return _DEFAULT_INTERVAL_S
    with suppress(ValueError):
        if (seconds := float(given)) >= 0:
            return seconds
    raise ConfigError(
        f"{INTERVAL_VARIABLE}={given}: expected seconds between snapshots, a number from 0 up such as 60"
    )


def run_name(record: Record) -> str:
    """Return a name for files and folders of a run: readable, and another one for runs that differ in any setting."""
    short = hashlib.sha1(identity(record).encode(), usedforsecurity=False).hexdigest()[:6]
    return f"{record.method}-seed{record.seed}-{short}"


def _settings(record: Record) -> dict[str, Any]:
    """Return what tells a run from others, with its settings side by side."""
    found = json.loads(identity(record))
    return {**{k: v for k, v in found.items() if k != "config"}, **(found.get("config") or {})}


def delete_snapshots(folder: Path, record: Record) -> None:
    """Remove the snapshots of a run that has ended or is to start anew, of all its processes; no other file."""
    for path in _files(folder, run_name(record)):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # not there, or not empty
        folder.rmdir()


def _files(folder: Path, name: str) -> list[Path]:
    pattern = re.compile(re.escape(name) + r"(-stage\d+of\d+)?(-step\d+)?\.(pt|partial)(\.partial)?")
    return [p for p in folder.iterdir() if pattern.fullmatch(p.name)] if folder.is_dir() else []


class SnapshotStore:
    """The last states of one run, in files that are written now and then; no run loses more than that time.

    Args:
        folder: folder of the files; made when the first is written.
        record: record of the run, for its settings.
        peers: the processes that the run is spread over.
        every_s: seconds between two snapshots; None for `interval_s`.
    """

    def __init__(
        self,
        folder: Path,
        record: Record,
        peers: RunProcesses | None = None,
        every_s: float | None = None,
    ) -> None:
        self.folder = folder
        self.every_s = interval_s() if every_s is None else every_s
        self._name = run_name(record)
        self._run = _settings(record)
        self._peers: RunProcesses = SingleProcess() if peers is None else peers
        if self._peers.stages > 1:
            self._name += f"-stage{self._peers.stage}of{self._peers.stages}"
        self._owner = Fingerprint(self._run, None, {})
        self._last = time.monotonic()
        self._last_step = self._ask_at = 0
        self._warned = False

    def belongs_to(self, parameters: Mapping[str, str], data: str | None) -> None:
        """Say which network the states are of, and which data it is trained on; before all else."""
        self._owner = Fingerprint(self._run, data, parameters, self._peers.stage, self._peers.stages)

    def path(self, step: int) -> Path:
        """Return the file of a step."""
        return self.folder / f"{self._name}-step{step}.pt"

    def load(self, device: str) -> State | None:
        """Return the last state of which all parts are whole, on the device; None if there is none.

        A damaged file is named in a warning, and the one before it is used.

        Raises:
            ConfigError: if a file is whole, but of another run or version.
        """
        states: dict[tuple[int, str], State] = {}
        refused = None
        try:
            states = self._whole(device)
        except ConfigError as error:  # the others must hear of it, they would wait
            refused = str(error)
        found = self._peers.all_gather((refused, list(states)))
        if reasons := [reason for reason, _ in found if reason]:
            raise ConfigError(refused or reasons[0])
        common = set(states).intersection(*(keys for _, keys in found))
        chosen = max(common, default=None)
        if states and chosen is None:
            self._warn(f"{self.folder}: holds no step that every stage has saved; the run starts anew")
        elif states and chosen is not None and chosen[0] < max(step for step, _ in states):
            self._warn(
                f"{self.path(max(states)[0])}: other stages have not saved this step; that of {chosen[0]} is used"
            )
        if self._peers.stages > 1:  # what is left of a later step must never meet a new part of it
            for step, _ in states:
                if chosen is None or step > chosen[0]:
                    with suppress(OSError):
                        self.path(step).unlink(missing_ok=True)
        if chosen is None:
            return None
        self._last_step = self._ask_at = chosen[0]
        return states[chosen]

    def _whole(self, device: str) -> dict[tuple[int, str], State]:
        """Return the states that can be gone on from, by step and launch; alone, the last one only."""
        states: dict[tuple[int, str], State] = {}
        files = sorted(self._own(), key=_step_of, reverse=True)
        for k, path in enumerate(files):
            try:
                header, state = read_snapshot(path, self._owner, device)
            except DamagedSnapshotError as error:
                instead = "the one before it is used" if k + 1 < len(files) else "the run starts anew"
                self._warn(f"{path}: is no snapshot that can be read ({error}); {instead}")
                continue
            states[header["step"], header["launch"]] = state
            if self._peers.stages == 1:
                break
        return states

    def _own(self) -> list[Path]:
        found = _files(self.folder, self._name)
        return [p for p in found if p.suffix == ".pt"]

    def due(self, step: int) -> bool:
        """Is it time to write one? Of several processes all must ask at the same steps; now and then they agree."""
        if step < self._ask_at:
            return False
        passed_s = self._peers.all_gather(time.monotonic() - self._last)[0]
        if passed_s >= self.every_s:
            return True
        if self._peers.stages > 1:  # asking makes them wait for each other: not before it may be time
            step_s = passed_s / max(1, step - self._last_step)
            self._ask_at = step + max(1, int((self.every_s - passed_s) / max(step_s, 1e-6)))
        return False

    def save(self, step: int, make: Callable[[], State]) -> None:
        """Write a state if it is time to; ``make`` is only called then. A run does not fail where this does."""
        if not self.due(step):
            return
        state = make()
        self._last, self._last_step, self._ask_at = time.monotonic(), step, step + 1
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_snapshot(self.path(step), self._owner, {"step": step, "launch": self._peers.launch}, state)
            self._prune(step)
        except (OSError, RuntimeError) as error:  # torch.save makes a RuntimeError of a full disk
            if not self._warned:
                self._warned = True
                reason = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
                self._warn(
                    f"{self.folder}: no snapshot can be written ({reason}); the run goes on without, and would start "
                    "anew, or from an earlier one"
                )

    def _prune(self, step: int) -> None:
        """Keep the last files up to a step; those of later steps were damaged, else they would have been gone on from."""
        steps = sorted(k for path in self._own() if (k := _step_of(path)) >= 0)
        for old in {*steps} - {*[k for k in steps if k <= step][-_KEPT:]}:
            self.path(old).unlink(missing_ok=True)

    @staticmethod
    def _warn(text: str) -> None:
        warnings.warn(text, SnapshotWarning, stacklevel=3)


def _step_of(path: Path) -> int:
    found = re.search(r"-step(\d+)\.pt$", path.name)
    return int(found[1]) if found else -1

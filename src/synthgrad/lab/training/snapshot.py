"""Snapshots of a run, from which it resumes after an interruption.

If the network's stages are in several processes, each writes its part of the state, all at the same step. The run resumes
from the last step of which all parts exist and are intact.
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

#: Environment variable with the number of seconds between two snapshots of a run.
INTERVAL_VARIABLE = "SYNTHGRAD_SNAPSHOT_S"
_DEFAULT_INTERVAL_S = 60.0
_NUM_KEPT = 2


class SnapshotWarning(UserWarning):
    """A snapshot is damaged or cannot be written; the run continues."""


class RunProcesses(Protocol):
    """The processes that train a network together.

    Attributes:
        stage: index of this process.
        stages: number of processes.
        launch: name of this start of the processes; the same in all of them, different for every start.
    """

    stage: int
    stages: int
    launch: str

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by stage. Blocks; all processes must call it."""
        ...


class SingleProcess:
    """The only process of a run."""

    stage, stages, launch = 0, 1, ""

    def all_gather(self, value: Any) -> list[Any]:
        """Return a list with the value of this process."""
        return [value]


def interval_s() -> float:
    """Return the number of seconds between two snapshots: the value of the environment variable, or 60.

    Raises:
        ConfigError: if the value is not a number from 0 up.
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
    """Return a readable name for the files and folders of a run; it is different for runs that differ in any setting."""
    short = hashlib.sha1(identity(record).encode(), usedforsecurity=False).hexdigest()[:6]
    return f"{record.method}-seed{record.seed}-{short}"


def _settings(record: Record) -> dict[str, Any]:
    """Return the settings that identify a run, as a flat dictionary."""
    found = json.loads(identity(record))
    return {**{k: v for k, v in found.items() if k != "config"}, **(found.get("config") or {})}


def delete_snapshots(folder: Path, record: Record) -> None:
    """Delete the snapshots of a run, those of all its processes; other files are left alone."""
    for path in _files(folder, run_name(record)):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # the folder does not exist or is not empty
        folder.rmdir()


def _files(folder: Path, name: str) -> list[Path]:
    pattern = re.compile(re.escape(name) + r"(-stage\d+of\d+)?(-step\d+)?\.(pt|partial)(\.partial)?")
    return [p for p in folder.iterdir() if pattern.fullmatch(p.name)] if folder.is_dir() else []


class SnapshotStore:
    """Writes snapshots of one run at intervals, keeps the last ones, and loads them.

    Args:
        folder: folder of the snapshots; it is created with the first one.
        record: record of the run, for its settings.
        peers: the processes that train the network together; None for this one alone.
        every_s: number of seconds between two snapshots; None for `interval_s`.

    Attributes:
        folder: folder of the snapshots.
        every_s: number of seconds between two snapshots.
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

    def set_fingerprint(self, parameters: Mapping[str, str], data: str | None) -> None:
        """Set what identifies network and data; this must be called before all other methods.

        Args:
            parameters: dtype and shape of every parameter and buffer, by name.
            data: checksum of the training data, or None.
        """
        self._owner = Fingerprint(self._run, data, parameters, self._peers.stage, self._peers.stages)

    def path(self, step: int) -> Path:
        """Return the file of the snapshot at a step."""
        return self.folder / f"{self._name}-step{step}.pt"

    def load(self, device: str) -> State | None:
        """Return the last state of which all parts are intact, on a device; None if there is none.

        A warning names damaged files, and the snapshot before them is used. If there are several processes, this
        blocks, and all of them must call it.

        Raises:
            ConfigError: if a file is intact but belongs to another run or version.
        """
        states: dict[tuple[int, str], State] = {}
        refused = None
        try:
            states = self._intact_states(device)
        except (
            ConfigError
        ) as error:  # shared with the other processes, which would wait for this one otherwise
            refused = str(error)
        found = self._peers.all_gather((refused, list(states)))
        if reasons := [reason for reason, _ in found if reason]:
            raise ConfigError(refused or reasons[0])
        common = set(states).intersection(*(keys for _, keys in found))
        chosen = max(common, default=None)
        if states and chosen is None:
            self._warn(
                f"{self.folder}: has no step that every stage has saved; the run starts from the beginning"
            )
        elif states and chosen is not None and chosen[0] < max(step for step, _ in states):
            self._warn(
                f"{self.path(max(states)[0])}: not every stage has saved this step; step {chosen[0]} is used instead"
            )
        if self._peers.stages > 1:  # old parts of a later step must not be combined with new ones
            for step, _ in states:
                if chosen is None or step > chosen[0]:
                    with suppress(OSError):
                        self.path(step).unlink(missing_ok=True)
        if chosen is None:
            return None
        self._last_step = self._ask_at = chosen[0]
        return states[chosen]

    def _intact_states(self, device: str) -> dict[tuple[int, str], State]:
        """Return the intact states of this process by step and launch; a single process needs only the last one."""
        states: dict[tuple[int, str], State] = {}
        files = sorted(self._own_files(), key=_step_of, reverse=True)
        for k, path in enumerate(files):
            try:
                header, state = read_snapshot(path, self._owner, device)
            except DamagedSnapshotError as error:
                instead = (
                    "the one before it is used" if k + 1 < len(files) else "the run starts from the beginning"
                )
                self._warn(f"{path}: is a damaged snapshot ({error}); {instead}")
                continue
            states[header["step"], header["launch"]] = state
            if self._peers.stages == 1:
                break
        return states

    def _own_files(self) -> list[Path]:
        found = _files(self.folder, self._name)
        return [p for p in found if p.suffix == ".pt"]

    def due(self, step: int) -> bool:
        """Return whether to write a snapshot at this step; all processes of the run must ask at the same steps.

        Several processes have to agree, and wait for each other to do so. That is why they estimate the step at which
        the next snapshot is due, and do not ask each other before.
        """
        if step < self._ask_at:
            return False
        passed_s = self._peers.all_gather(time.monotonic() - self._last)[0]
        if passed_s >= self.every_s:
            return True
        if self._peers.stages > 1:
            step_s = passed_s / max(1, step - self._last_step)
            self._ask_at = step + max(1, int((self.every_s - passed_s) / max(step_s, 1e-6)))
        return False

    def save(self, step: int, make: Callable[[], State]) -> None:
        """Write a snapshot if one is due. A failure is a warning and does not stop the run.

        Args:
            step: number of steps done.
            make: function that returns the state; it is called only if a snapshot is due.
        """
        if not self.due(step):
            return
        state = make()
        self._last, self._last_step, self._ask_at = time.monotonic(), step, step + 1
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_snapshot(self.path(step), self._owner, {"step": step, "launch": self._peers.launch}, state)
            self._prune(step)
        except (OSError, RuntimeError) as error:  # torch.save raises a RuntimeError if the disk is full
            if not self._warned:
                self._warned = True
                reason = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
                self._warn(
                    f"{self.folder}: no snapshot can be written ({reason}); the run continues without, and could resume "
                    "only from an earlier one"
                )

    def _prune(self, step: int) -> None:
        """Delete all but the last files up to a step; files of later steps are damaged ones, and are deleted too."""
        steps = sorted(k for path in self._own_files() if (k := _step_of(path)) >= 0)
        for old in {*steps} - {*[k for k in steps if k <= step][-_NUM_KEPT:]}:
            self.path(old).unlink(missing_ok=True)

    @staticmethod
    def _warn(text: str) -> None:
        warnings.warn(text, SnapshotWarning, stacklevel=3)


def _step_of(path: Path) -> int:
    found = re.search(r"-step(\d+)\.pt$", path.name)
    return int(found[1]) if found else -1

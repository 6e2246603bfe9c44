"""Runs that are killed and started again until they end, and how far their end differs from an undisturbed one.

Each start is a process of its own, forked from one that has loaded PyTorch, so that it takes a moment only.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...records import FILE, Record, read
from ...training.run import Run
from ...training.snapshot import INTERVAL_VARIABLE
from ...training.sweep import Progress, Sweep

__all__ = ["Kill", "Outcome", "difference", "get_ready", "kill_until_it_ends", "uninterrupted"]

#: Seconds after which a start is taken for hung.
_PATIENCE_S = 180.0


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill.

    Attributes:
        signal: name of the signal.
        after_s: seconds from the start of the process to the kill.
        resumed_steps: step of the last whole snapshot, from which the next start goes on; 0 for none.
        lost_s: seconds of work since that snapshot, or since the start of the process.
    """

    signal: str
    after_s: float
    resumed_steps: int
    lost_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a run.

    Attributes:
        kills: the kills, in order.
        record: its record; None if there is none.
        seconds: seconds that its last start took.
        error: what went wrong with its processes; None if nothing.
    """

    kills: Sequence[Kill]
    record: Record | None
    seconds: float
    error: str | None = None


def uninterrupted(config: Run, out: Path, every_s: float, stages: int = 1) -> Outcome:
    """Run a configuration to its end."""
    return kill_until_it_ends(config, out, every_s, stages, ())


def kill_until_it_ends(
    config: Run, out: Path, every_s: float, stages: int, plan: Sequence[tuple[str, float]]
) -> Outcome:
    """Run a configuration, kill it at each time of a plan as long as it has not ended, and then let it end.

    Args:
        config: the run.
        out: its results folder.
        every_s: seconds between two snapshots.
        stages: processes that the network is spread over.
        plan: signals by name, with the seconds after which they are sent.
    """
    kills: list[Kill] = []
    for name, after_s in (*plan, ("", 0.0)):
        begun, clock = time.time(), time.monotonic()
        process = _CONTEXT.Process(target=_go, args=(config, str(out), every_s))
        process.start()
        process.join(after_s if name else _PATIENCE_S)
        hung = process.is_alive() and not name
        killed_at = time.time()
        if process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(process.pid or 0, signal.SIGKILL if hung else getattr(signal, name))
            process.join(_PATIENCE_S)
        left = _left_behind(process.pid or 0)
        seconds, code = time.monotonic() - clock, process.exitcode
        process.close()
        if hung or left:
            return Outcome(kills, _last(out), seconds, "hung" if hung else "left processes behind")
        if code not in (-signal.SIGKILL, 130):
            error = None if code == 0 else f"exit status {code}: {_said(out)}"
            return Outcome(kills, _last(out), seconds, error)
        step, saved_at = _saved(out / "snapshots", stages)
        kills.append(Kill(name, after_s, step, max(0.0, killed_at - max(begun, saved_at))))
    return Outcome(kills, _last(out), 0.0, "was killed by something else")


def get_ready() -> None:
    """Start what the runs are forked from, so that none of them has to wait for it."""
    name = "PYTHONWARNINGS"
    before = os.environ.get(name)
    # Processes that are killed leave semaphores, which Python clears away and tells of at the end.
    os.environ[name] = "ignore::UserWarning:multiprocessing.resource_tracker"
    try:
        process = _CONTEXT.Process(target=os.getpid)
        process.start()
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})
    process.join()
    process.close()


def difference(record: Mapping[str, Any], reference: Mapping[str, Any]) -> str | None:
    """Say in what a record differs from that of an uninterrupted run, times apart; None if in nothing."""
    for name in ("status", "error", "metrics", "curve", "weights_sha256"):
        one, other = _timeless(record.get(name)), _timeless(reference.get(name))
        if one != other:
            return f"{name} {str(one)[:80]}, expected {str(other)[:80]}"
    return None


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _timeless(v) for k, v in value.items() if not str(k).endswith(("_s", "_per_s"))}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def _go(config: Run, out: str, every_s: float) -> None:
    """Do in this process what the command line does with ``--resume``."""
    os.setsid()  # so that what it starts can be found
    os.environ[INTERVAL_VARIABLE] = str(every_s)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    Path(out).mkdir(parents=True, exist_ok=True)
    said = os.open(Path(out, "said.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(said, stream)
    try:
        for _ in Sweep([config], Path(out), resume=True, threads=1).records(Progress()):
            pass
    except KeyboardInterrupt:
        sys.exit(130)


def _left_behind(group: int) -> bool:
    """Wait for the last process of a group; end what is left of it after a while."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    return True


def _saved(folder: Path, stages: int) -> tuple[int, float]:
    """Return the last step that every stage has saved, and when; zeros for none."""
    found: dict[int, list[float]] = {}
    for path in folder.glob("*.pt") if folder.is_dir() else ():
        if step := re.search(r"-step(\d+)\.pt$", path.name):
            found.setdefault(int(step[1]), []).append(path.stat().st_mtime)
    whole = [step for step, times in found.items() if len(times) == stages]
    return (max(whole), max(found[max(whole)])) if whole else (0, 0.0)


def _last(out: Path) -> Record | None:
    records = read(out / FILE)[0]
    return records[-1] if records else None


def _said(out: Path) -> str:
    lines = (out / "said.txt").read_text(errors="replace").splitlines() if (out / "said.txt").exists() else []
    return lines[-1] if lines else "nothing was said"


_CONTEXT = multiprocessing.get_context(
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else None
)
if _CONTEXT.get_start_method() == "forkserver":
    # The compiler, which optimizers load at their first step, takes as long as all the rest.
    _CONTEXT.set_forkserver_preload([__name__, "torch._dynamo"])

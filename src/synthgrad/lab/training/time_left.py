"""Progress of a sweep in words: how long it will still take, and short names for its runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from statistics import mean
from typing import Any

from .run import Run

__all__ = ["TimeLeft", "run_key", "run_names"]

#: What runs of about the same cost share, the most alike first. The pace of the most alike that has ended is used.
_ALIKE: tuple[Callable[[Run], Any], ...] = (
    lambda run: (
        run.payload.data,
        run.payload.arch,
        run.payload.layers,
        run.payload.width,
        _unroll(run),
        run.method,
    ),
    lambda run: (run.payload.data, run.payload.arch, run.payload.layers, run.payload.width),
    lambda run: (run.payload.data, run.payload.arch),
    lambda run: None,
)


class TimeLeft:
    """Estimates how many seconds of a sweep are left.

    The work of a run is its number of steps times the estimated cost of a step. A run takes that work at the pace of the
    runs most alike that have ended; the one under way goes on at its own pace.

    Args:
        runs: the runs.
        jobs: number of runs side by side.
    """

    def __init__(self, runs: Sequence[Run], jobs: int = 1) -> None:
        self._left = {run_key(run): run for run in runs}
        self._jobs = jobs
        self._paces: list[dict[Any, list[float]]] = [{} for _ in _ALIKE]
        self._own_pace: float | None = None  # of the run under way
        self._under_way: tuple[str, float] = ("", 0.0)  # the run, and the share of it that is done

    def stepped(self, run: Run, step: int, seconds: float) -> None:
        """Note how far a run is, where runs come one after the other.

        Args:
            run: the run.
            step: number of steps done.
            seconds: the time they took.
        """
        share = step / run.schedule.steps
        self._under_way = (run_key(run), share)
        if share:
            self._own_pace = seconds / (_work(run) * share)

    def ended(self, run: Run, seconds: float | None) -> None:
        """Note that a run has ended.

        Args:
            run: the run.
            seconds: the time it took; None if that says nothing of others, because it was skipped or failed.
        """
        self._left.pop(run_key(run), None)
        if seconds is not None:
            for alike, paces in zip(_ALIKE, self._paces, strict=True):
                paces.setdefault(alike(run), []).append(seconds / _work(run))

    def seconds(self) -> float | None:
        """Return about how many seconds are left; None if nothing is known yet."""
        total = 0.0
        for key, run in self._left.items():
            done = self._under_way[1] if key == self._under_way[0] else 0.0
            pace = self._own_pace if done else self._pace(run)
            if pace is None:
                return None
            total += (1 - done) * pace * _work(run)
        return total / max(1, min(self._jobs, len(self._left)))

    def _pace(self, run: Run) -> float | None:
        """Return the seconds of a unit of work of a run."""
        for alike, paces in zip(_ALIKE, self._paces, strict=True):
            if found := paces.get(alike(run)):
                return mean(found)
        return self._own_pace


def run_key(run: Run) -> str:
    """Return what tells the runs of a sweep apart; not where their snapshots lie, which a sweep adds."""
    return repr((run.method, run.seed, run.payload, run.schedule, run.rule, run.precision))


def run_names(runs: Sequence[Run]) -> dict[str, str]:
    """Return a short name for each run of a sweep by its `run_key`: the label, and what else varies in the sweep."""
    parts: list[Callable[[Run], str]] = [
        lambda run: run.payload.data,
        lambda run: f"{run.payload.arch} {run.payload.layers} layers",
        lambda run: f"{run.schedule.steps:,} steps",
    ]
    varied = [part for part in parts if len({part(run) for run in runs}) > 1]
    varied += (
        [lambda run: f"p={run.payload.update_prob:g}"]
        if any(getattr(r.payload, "update_prob", 1) != 1 for r in runs)
        else []
    )
    methods = {run.method for run in runs}
    rules = {method: _differing(run.rule for run in runs if run.method == method) for method in methods}
    return {
        run_key(run): ", ".join(
            [run.label, *(part(run) for part in varied), *_of_rule(run, rules[run.method])]
        )
        for run in runs
    }


def _differing(rules: Iterable[Any]) -> list[str]:
    """Return the names of the settings in which rules differ."""
    found = set(rules)
    names = fields(next(iter(found)))
    return [f.name for f in names if len({getattr(rule, f.name) for rule in found}) > 1]


def _of_rule(run: Run, names: Iterable[str]) -> list[str]:
    """Return the settings of a run's rule that tell it from the others of its method."""
    values = [(name.replace("_", " "), getattr(run.rule, name)) for name in names]
    return [name if value is True else f"{name} {value}" for name, value in values if value is not False]


def _unroll(run: Run) -> int | None:
    """Return the steps of an unroll, of a recurrent network."""
    return getattr(run.payload, "unroll", None)


def _work(run: Run) -> float:
    return run.schedule.steps * (run.estimated_ratio or 1.0)

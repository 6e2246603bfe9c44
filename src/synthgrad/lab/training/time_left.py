"""The progress of a sweep: the estimated time left, and short names of its runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from statistics import mean
from typing import Any

from .run import Run

__all__ = ["TimeLeft", "run_key", "run_names"]

#: Groups runs of about the same cost, from fine to coarse. The pace of a run is that of the finest group with runs that
#: have ended.
_GROUPINGS: tuple[Callable[[Run], Any], ...] = (
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

    The work of a run is its number of steps times the estimated cost of a step. The pace of a run, in seconds per unit of
    work, is taken from the most similar runs that have ended; a run under way has its own.

    Args:
        runs: the runs of the sweep.
        jobs: number of runs in parallel.
    """

    def __init__(self, runs: Sequence[Run], jobs: int = 1) -> None:
        self._left = {run_key(run): run for run in runs}
        self._jobs = jobs
        self._paces: list[dict[Any, list[float]]] = [{} for _ in _GROUPINGS]
        self._own_pace: float | None = None  # pace of the run under way
        self._under_way: tuple[str, float] = ("", 0.0)  # key of that run, and the fraction of it that is done

    def stepped(self, run: Run, step: int, seconds: float) -> None:
        """Record the progress of a run, when runs are trained one after the other.

        Args:
            run: the run.
            step: number of steps done.
            seconds: time that these steps took.
        """
        fraction = step / run.schedule.steps
        self._under_way = (run_key(run), fraction)
        if fraction:
            self._own_pace = seconds / (_work(run) * fraction)

    def ended(self, run: Run, seconds: float | None) -> None:
        """Record the end of a run.

        Args:
            run: the run.
            seconds: time that it took; None if it was skipped or failed, so that its time does not count for others.
        """
        self._left.pop(run_key(run), None)
        if seconds is not None:
            for group_of, paces in zip(_GROUPINGS, self._paces, strict=True):
                paces.setdefault(group_of(run), []).append(seconds / _work(run))

    def seconds(self) -> float | None:
        """Return the estimated number of seconds left, or None if there is no measurement yet."""
        total = 0.0
        for key, run in self._left.items():
            done = self._under_way[1] if key == self._under_way[0] else 0.0
            pace = self._own_pace if done else self._pace(run)
            if pace is None:
                return None
            total += (1 - done) * pace * _work(run)
        return total / max(1, min(self._jobs, len(self._left)))

    def _pace(self, run: Run) -> float | None:
        """Return the estimated number of seconds per unit of work of a run."""
        for group_of, paces in zip(_GROUPINGS, self._paces, strict=True):
            if found := paces.get(group_of(run)):
                return mean(found)
        return self._own_pace


def run_key(run: Run) -> str:
    """Return a text that identifies a run within a sweep; it leaves out the snapshots' folder, which the sweep adds."""
    return repr((run.method, run.seed, run.payload, run.schedule, run.rule, run.precision))


def run_names(runs: Sequence[Run]) -> dict[str, str]:
    """Return a short name for each run of a sweep by `run_key`: its label, and the settings that vary in the sweep."""
    parts: list[Callable[[Run], str]] = [
        lambda run: run.payload.data,
        lambda run: f"{run.payload.arch} {run.payload.layers} layers",
        lambda run: f"{run.schedule.steps:,} steps",
        lambda run: run.schedule.optimizer,
    ]
    varied = [part for part in parts if len({part(run) for run in runs}) > 1]
    varied += (
        [lambda run: f"p={run.payload.update_prob:g}"]
        if any(getattr(r.payload, "update_prob", 1) != 1 for r in runs)
        else []
    )
    varied += [_of_updates] if len({_of_updates(run) for run in runs}) > 1 else []
    methods = {run.method for run in runs}
    rules = {method: _differing(run.rule for run in runs if run.method == method) for method in methods}

    def named(run: Run, *more: str) -> str:
        words = [run.label, *filter(None, (part(run) for part in varied)), *_of_rule(run, rules[run.method])]
        return ", ".join([*words, *more])

    found = Counter(named(run) for run in runs)
    return {
        run_key(run): named(run) if found[named(run)] == 1 else named(run, f"rate {run.schedule.lr:g}")
        for run in runs
    }


def _of_updates(run: Run) -> str:
    """Return in words how a GPT is cut, and how its updates are made; empty where that is usual."""
    modules, schedule = getattr(run.payload, "modules", None), run.schedule
    words = [f"{modules} modules"] if modules is not None else []
    words += ["error feedback"] if schedule.error_feedback else []
    words += [f"updates of {schedule.accumulate} batches"] if schedule.accumulate > 1 else []
    words += [f"{schedule.versions} versions"] if schedule.versions is not None else []
    return ", ".join(words)


def _differing(rules: Iterable[Any]) -> list[str]:
    """Return the names of the settings that differ between rules."""
    found = set(rules)
    names = fields(next(iter(found)))
    return [f.name for f in names if len({getattr(rule, f.name) for rule in found}) > 1]


def _of_rule(run: Run, names: Iterable[str]) -> list[str]:
    """Return the named settings of a run's rule as words."""
    values = [(name.replace("_", " "), getattr(run.rule, name)) for name in names]
    return [name if value is True else f"{name} {value}" for name, value in values if value is not False]


def _unroll(run: Run) -> int | None:
    """Return the number of steps in an unroll of a recurrent network, or None."""
    return getattr(run.payload, "unroll", None)


def _work(run: Run) -> float:
    return run.schedule.steps * (run.estimated_ratio or 1.0)

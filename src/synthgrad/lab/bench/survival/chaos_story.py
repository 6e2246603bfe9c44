"""What became of the stages of a run of ``bench chaos``, from what they have written down."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from .chaos_faults import KINDS, Fault

__all__ = ["Life", "Story", "Writer", "pid_of", "story_of"]

#: The time of a point of the timeline, in seconds.
_BIN_S = 2.0
#: The time between two lines about steps, in seconds.
_TELL_S = 0.25


class Writer:
    """Writes down what a process of a stage does, a line of JSON each, and when.

    Args:
        folder: where it writes.
        stage: its stage.
    """

    def __init__(self, folder: str | Path, stage: int) -> None:
        life = len(_files(folder, stage)) + 1
        self._file = (Path(folder) / f"stage{stage}.{life}.jsonl").open("w", encoding="utf-8")
        self._told_at = time.time()

    def __call__(self, **words: Any) -> None:
        """Write a line."""
        self._file.write(json.dumps({"at": time.time(), **words}) + "\n")
        self._file.flush()

    def now_and_then(self, **words: Any) -> None:
        """Write a line if the last one of these was a while ago."""
        if time.time() - self._told_at >= _TELL_S:
            self._told_at = time.time()
            self(**words)


def _files(folder: str | Path, stage: int) -> list[Path]:
    return sorted(Path(folder).glob(f"stage{stage}.*.jsonl"), key=lambda p: int(p.name.split(".")[1]))


def pid_of(folder: str | Path, stage: int) -> int | None:
    """Return the number of the newest process of a stage, if it has written that down; None for none."""
    files = _files(folder, stage)
    words = files[-1].read_text(encoding="utf-8").splitlines() if files else []
    return json.loads(words[0]).get("pid") if words else None


@dataclass(frozen=True, slots=True)
class Life:
    """What one process of a stage has done.

    Attributes:
        came_s: when its imports were done, in seconds from the beginning of the run.
        began_s: when it had its first batch; None if it never had.
        steps: by time, how many steps it had made.
        facts: its last figures.
        last: number of its last batch; None if it never had one.
    """

    came_s: float
    began_s: float | None
    steps: Sequence[tuple[float, int]]
    facts: dict[str, Any]
    last: int | None = None

    @property
    def num_steps(self) -> int:
        """Steps that it has made."""
        return self.steps[-1][1] if self.steps else 0


@dataclass(slots=True)
class Story:
    """What became of a run.

    Attributes:
        lives: the processes of every stage, one after the other.
        failure: what went wrong; None for nothing.
        error: of the weights at the end, by the name of its metric.
    """

    lives: Sequence[Sequence[Life]]
    failure: str | None = None
    error: Mapping[str, float] = field(default_factory=dict[str, float])

    def steps_of(self, stage: int) -> int:
        """Return how many steps the processes of a stage have made together."""
        return sum(life.num_steps for life in self.lives[stage])

    def steps_per_s(self, until_s: float | None = None) -> list[float]:
        """Return the pace of each stage until a moment, the beginning left out."""
        return [
            _pace([point for life in stage for point in life.steps], 2.0, until_s or float("inf")) or 0.0
            for stage in self.lives
        ]

    def figures(
        self, faults: Sequence[Fault], pace: Sequence[float], lasted_s: float | None = None
    ) -> dict[str, Any]:
        """Return the metrics of the run.

        Args:
            faults: what has happened.
            pace: steps per second of each stage without faults.
            lasted_s: how long the run was, in seconds; None to see that from its steps.
        """
        found: dict[str, Any] = {"num_faults": len(faults)}
        for kind in KINDS:
            found[f"num_{kind}"] = sum(f.kind == kind for f in faults)
        ratios = [
            ratio
            for fault in faults
            for stage, lives in enumerate(self.lives)
            if not fault.concerns(stage) and (ratio := self._ratio(lives, fault, pace[stage])) is not None
        ]
        if ratios:
            found |= {"survivors_pace_ratio_median": median(ratios), "survivors_pace_ratio_min": min(ratios)}
        again = [life for stage in self.lives for life in stage[1:]]
        returns = [life.began_s - life.came_s for life in again if life.began_s is not None]
        found["num_never_back"] = len(again) - len(returns)
        if returns:
            found |= {"return_s_median": median(returns), "return_s_max": max(returns)}
        top = len(self.lives) - 1
        found["steps_last"] = self.steps_of(top)
        # What was done twice, from a snapshot on, counts once.
        kept = min(self.steps_of(top), 1 + max((life.last or 0 for life in self.lives[top]), default=0))
        lasted_s = lasted_s or max((life.steps[-1][0] for life in self.lives[top] if life.steps), default=0.0)
        if lasted_s > 0 and pace[top]:
            found["kept_ratio"] = kept / (pace[top] * lasted_s)
        for stage, lives in enumerate(self.lives):
            found[f"steps_stage{stage}"] = self.steps_of(stage)
            found[f"steps_per_s_stage{stage}"] = pace[stage]
            for name in ("num_alone", "num_given_up", "num_skipped", "num_synthetic"):
                found[f"{name}_stage{stage}"] = sum(life.facts.get(name, 0) for life in lives)
        return found

    def timeline(self) -> list[dict[str, float]]:
        """Return the pace of each stage over time: seconds, and steps per second by stage, 0 where it made none."""
        end = max((at for stage in self.lives for life in stage for at, _ in life.steps), default=0.0)
        found: list[dict[str, float]] = []
        for k in range(int(end // _BIN_S)):
            begin, until = k * _BIN_S, (k + 1) * _BIN_S
            point = {"elapsed_s": until}
            for stage, lives in enumerate(self.lives):
                made = sum(_made(life.steps, begin, until) for life in lives)
                point[f"steps_per_s_stage{stage}"] = round(made / _BIN_S, 3)
            found.append(point)
        return found

    def _ratio(self, lives: Sequence[Life], fault: Fault, pace: float) -> float | None:
        """Return how many steps a stage made from a fault to the next one, over those of its pace without faults.

        A time in which it has written nothing counts like any other.
        """
        ended_s = max(
            (life.steps[-1][0] for stage in self.lives for life in stage if life.steps), default=0.0
        )
        lasted_s = min(fault.next_s, ended_s) - fault.begin_s
        if lasted_s <= 0 or not pace:
            return None
        made = sum(_made(life.steps, fault.begin_s, fault.begin_s + lasted_s) for life in lives)
        return made / (pace * lasted_s)


def _made(points: Sequence[tuple[float, int]], begin_s: float, end_s: float) -> float:
    """Return how many steps a process made between two moments; between two of its lines in proportion."""
    made = 0.0
    for (a, before), (b, after) in pairwise([(points[0][0] - _BIN_S, 0), *points] if points else []):
        inside = min(b, end_s) - max(a, begin_s)
        if inside > 0 and b > a:
            made += (after - before) * inside / (b - a)
    return made


def _pace(points: Sequence[tuple[float, int]], begin_s: float, end_s: float) -> float | None:
    """Return steps per second between two moments; None where there is too little to say."""
    inside = [(at, steps) for at, steps in points if begin_s <= at <= end_s]
    if len(inside) < 3:
        return None
    made = sum(max(0, b - a) for (_, a), (_, b) in pairwise(inside))
    return made / (inside[-1][0] - inside[0][0])


def story_of(folder: Path, stages: int, began_at: float, failure: str | None) -> Story:
    """Read what the processes of a run have written."""
    lives: list[list[Life]] = []
    for stage in range(stages):
        lives.append([_read(path, began_at) for path in _files(folder, stage)])
    return Story(lives, failure)


def _read(path: Path, began_at: float) -> Life:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    came = next((line["came"] for line in lines if "came" in line), began_at)
    steps = [(line["at"] - began_at, line["steps"]) for line in lines if "steps" in line]
    names = ("num_alone", "num_given_up", "num_skipped", "num_synthetic")
    facts: dict[str, Any] = {}
    for line in lines:
        facts |= {name: line[name] for name in names if name in line}
    begun = next((line["at"] - began_at for line in lines if "begins" in line), None)
    last = next((line["number"] for line in reversed(lines) if "number" in line), None)
    return Life(came - began_at, begun, steps, facts, last)

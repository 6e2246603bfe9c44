"""What became of the stages of a run of ``bench chaos``, from what they have written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from .chaos_faults import KINDS, Fault

__all__ = ["Life", "Story", "story_of"]

#: The time of a point of the timeline, in seconds.
_BIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Life:
    """What one process of a stage has done.

    Attributes:
        came_s: when its imports were done, in seconds from the beginning of the run.
        began_s: when it had its first batch; None if it never had.
        steps: by time, how many steps it had made.
        facts: its last figures.
    """

    came_s: float
    began_s: float | None
    steps: Sequence[tuple[float, int]]
    facts: dict[str, Any]

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
        error_pct: test error of the weights at the end, in percent.
    """

    lives: Sequence[Sequence[Life]]
    failure: str | None = None
    error_pct: float | None = field(default=None)

    def steps_of(self, stage: int) -> int:
        """Return how many steps the processes of a stage have made together."""
        return sum(life.num_steps for life in self.lives[stage])

    def steps_per_s(self) -> list[float]:
        """Return the pace of each stage, the beginning and the end left out."""
        return [
            _pace([point for life in stage for point in life.steps], 2.0, float("inf")) or 0.0
            for stage in self.lives
        ]

    def figures(self, faults: Sequence[Fault], pace: Sequence[float]) -> dict[str, Any]:
        """Return the metrics of the run.

        Args:
            faults: what has happened.
            pace: steps per second of each stage without faults.
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
        found["steps_last"] = self.steps_of(len(self.lives) - 1)
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

    @staticmethod
    def _ratio(lives: Sequence[Life], fault: Fault, pace: float) -> float | None:
        """Return how fast a stage was from a fault to the next one, over its pace without faults."""
        own = _pace([point for life in lives for point in life.steps], fault.begin_s, fault.next_s)
        return None if own is None or not pace else own / pace


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
        paths = sorted(folder.glob(f"stage{stage}.*.jsonl"), key=lambda p: int(p.name.split(".")[1]))
        lives.append([_read(path, began_at) for path in paths])
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
    return Life(came - began_at, begun, steps, facts)

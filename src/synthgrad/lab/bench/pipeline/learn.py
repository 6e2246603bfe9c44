"""Training to an accuracy, with a clock that stops while the network is evaluated."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ...tasks.images import LabelledData, draw_batches
from .program import Program

__all__ = ["Goal", "goal_of", "train"]


@dataclass(frozen=True, slots=True)
class Goal:
    """When a training ends.

    Attributes:
        data: name of the data set.
        accuracy_pct: accuracy on the test set that is to be reached.
        most_steps: number of steps after which it ends in any case.
        eval_every: steps between evaluations.
    """

    data: str
    accuracy_pct: float
    most_steps: int
    eval_every: int


def goal_of(schedule: str, data: str) -> Goal:
    """Return what to train to: 98 % on MNIST, 95 % on the digits that are embedded; 85 % and few steps in smoke runs."""
    if schedule == "smoke":
        return Goal(data, 85.0, 60, 20)
    if data == "mnist":
        return Goal(data, 98.0, 20_000 if schedule == "full" else 6000, 100)
    return Goal(data, 95.0, 3000, 50)


def train(
    program: Program, images: LabelledData, batch_size: int, seed: int, goal: Goal, *, alone: bool
) -> dict[str, Any]:
    """Train until the goal is reached; return when that was. Blocks; all processes of the program must call it.

    The time is that of the slowest process, chunk by chunk between evaluations: with stages that run ahead it holds the
    time in which the pipe fills and drains, which a training without evaluations has once.

    Args:
        program: not trained yet.
        images: the same in all processes; the test part is evaluated on, nothing is chosen by it.
        batch_size: of all processes together.
        seed: of the order of the examples.
        goal: when to end.
        alone: whether this is the only process.
    """
    order = draw_batches(len(images.train), batch_size, seed, torch.device("cpu"))
    elapsed_s, best_pct, accuracy_pct, step = 0.0, 0.0, 0.0, 0
    while step < goal.most_steps:
        start = time.perf_counter()
        for _ in range(goal.eval_every):
            ids = next(order)[program.rows]
            program.step(images.train.x[ids] if program.reads_input else None, images.train.y[ids])
        seconds = time.perf_counter() - start
        step += goal.eval_every
        output = program.predict(images.test.x)
        right = 0 if output is None else int((output.argmax(1) == images.test.y).sum())
        told = torch.tensor([seconds, float(right)], dtype=torch.float64)
        if not alone:
            dist.all_reduce(told, dist.ReduceOp.MAX)
        elapsed_s += float(told[0])
        accuracy_pct = 100.0 * float(told[1]) / len(images.test)
        best_pct = max(best_pct, accuracy_pct)
        if accuracy_pct >= goal.accuracy_pct:
            break
    reached = accuracy_pct >= goal.accuracy_pct
    return {
        "time_to_accuracy_s": elapsed_s if reached else None,
        "steps_to_accuracy": step if reached else None,
        "accuracy_pct": best_pct,
        "target_accuracy_pct": goal.accuracy_pct,
    }

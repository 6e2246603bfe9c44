"""Workers that train networks, started once for many cases: one that hangs or dies costs its own line and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from ....engines.stages import join
from ..workers import Workers, WorkersError, serve
from .measure import Answer, Case, measure
from .zoo import ZOO

__all__ = ["Crew", "worst"]

_START_S = 120.0  # for the processes to load PyTorch and to find each other


class Crew:
    """Processes that do one case at a time together.

    They start with the first case, and anew after a case that ended them or left them waiting.

    Args:
        world: number of processes.
        threads: of each.
        timeout_s: how long a case may take, in seconds.
    """

    def __init__(self, world: int, threads: int, timeout_s: float) -> None:
        self._world, self._threads, self._timeout_s = world, threads, timeout_s
        self._workers: Workers | None = None

    def ask(self, case: Case) -> Answer:
        """Have all processes do a case, and return what came out: that of the one that fared worst."""
        try:
            if self._workers is None:
                self._workers = Workers("networks.crew", {"threads": self._threads}, self._world, _START_S)
            found = self._workers.ask({"do": "measure", "case": asdict(case)}, timeout_s=self._timeout_s)
        except WorkersError as error:
            self._kill()
            return Answer(error=str(error), failed=True)
        answers = [Answer(**each["answer"]) for each in found]
        if self._world > 1 and not all(map(_is_in_order, answers)):
            self._kill()  # a process may wait for one that has given up
        return worst(answers)

    def stop(self) -> None:
        """End the processes, in order if they can. Again does nothing."""
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.stop()

    def _kill(self) -> None:
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.kill()


def _is_in_order(answer: Answer) -> bool:
    """Return whether a process has done its case, or refused it before it has met the others."""
    return answer.error is None or answer.metrics.get("refused_at") == "construction"


def worst(answers: Sequence[Answer]) -> Answer:
    """Return the answer that counts: the cause of an error before its consequences, the largest deviation before others."""

    def badness(answer: Answer) -> tuple[bool, bool, float]:
        deviation = answer.metrics.get("max_relative_deviation", 0.0)
        return answer.error is not None, not answer.told, deviation

    return max(answers, key=badness)


def _set_up(settings: dict[str, Any]) -> Mapping[str, Callable[..., dict[str, Any]]]:
    torch.set_num_threads(settings["threads"])
    if int(os.environ["WORLD_SIZE"]) > 1:
        join("gloo", timeout_s=_START_S)

    def answer(case: dict[str, Any]) -> dict[str, Any]:
        found = measure(ZOO[case["network"]], Case(**case), int(os.environ["RANK"]))
        # Not by itself: an entry `error` says that the worker has failed.
        return {"answer": asdict(found)}

    return {"measure": answer}


if __name__ == "__main__":
    serve(_set_up)

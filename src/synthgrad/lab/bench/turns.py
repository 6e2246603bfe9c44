"""Taking turns: what is compared is timed in one run, a little of each in every round."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..training.machine import synchronize
from .base import Bench, Figures, ScopeT, SizeT, reason_of

__all__ = [
    "WARM_UP_STEPS",
    "TimedStep",
    "TurnsBench",
    "median_and_spread",
    "ratios",
    "take_turns",
    "warmed_up",
]

WARM_UP_STEPS, _WARM_UP_S = 20, 2.0

CaseT = TypeVar("CaseT", bound=Hashable)


@dataclass(slots=True)
class TimedStep:
    """A step that takes its turn in every round.

    Attributes:
        step: what is timed.
        per_round: how often it runs in a round.
        times_ms: of one step, mean over each round.
    """

    step: Callable[[], object]
    per_round: int
    times_ms: list[float] = field(default_factory=list[float])


class TurnsBench(Bench[ScopeT, SizeT, CaseT]):
    """A benchmark of steps in this process: all cases of a size take turns, and each is held against a reference.

    Attributes:
        compared_with: the reference in the names of the ratios.
        no_reference: the error of a case where there is no reference.
    """

    compared_with: ClassVar[str] = "backprop"
    no_reference: ClassVar[str] = "the hand-written loop, to which it is compared, could not be measured"

    @abstractmethod
    def material(self, scope: ScopeT, size: SizeT, cases: Sequence[CaseT]) -> Any:
        """Return what the steps of all cases share, such as batches."""

    @abstractmethod
    def step(self, scope: ScopeT, size: SizeT, case: CaseT, material: Any) -> Callable[[], object]:
        """Build what a case trains; return its step."""

    def reference(self, cases: Sequence[CaseT], timed: Mapping[CaseT, TimedStep]) -> TimedStep | None:
        """Return what the ratios are taken to, here the first case; None if it could not be measured."""
        return timed.get(cases[0])

    def more(
        self, scope: ScopeT, size: SizeT, case: CaseT, material: Any, metrics: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Return further figures of a case whose step was timed."""
        return {}

    def config(self, scope: ScopeT, size: SizeT, case: CaseT) -> Mapping[str, Any]:
        return {"seconds": scope.seconds}

    def measure(self, scope: ScopeT, size: SizeT, cases: Sequence[CaseT]) -> Iterator[Figures]:
        material = self.material(scope, size, cases)
        timed: dict[CaseT, TimedStep] = {}
        failed: dict[CaseT, str] = {}
        for case in cases:
            try:
                timed[case] = warmed_up(self.step(scope, size, case, material), scope.seconds, scope.device)
            except Exception as error:  # a case that fails is a line that says so
                failed[case] = reason_of(error)
        failed |= take_turns(timed, scope.rounds, scope.device)
        reference = self.reference(cases, timed)
        for case in cases:
            if case in failed or reference is None:
                yield Figures(error=failed.get(case, self.no_reference))
                continue
            metrics = ratios(timed[case].times_ms, reference.times_ms, self.compared_with)
            yield Figures({**metrics, **self.more(scope, size, case, material, metrics)})


def warmed_up(step: Callable[[], object], seconds: float, device: str) -> TimedStep:
    """Run some steps, and return one that takes about so many seconds in a round."""
    begin = start = time.perf_counter()
    for k in range(WARM_UP_STEPS):
        start = time.perf_counter()
        step()
        synchronize(device)
        if k >= 3 and start - begin > _WARM_UP_S:
            break
    once = time.perf_counter() - start
    return TimedStep(step, max(1, round(seconds / once)))


def take_turns(timed: dict[CaseT, TimedStep], rounds: int, device: str) -> dict[CaseT, str]:
    """Time all in every round; drop those that fail or diverge on the way, and return why."""
    failed: dict[CaseT, str] = {}
    for _ in range(rounds):
        for case, turn in list(timed.items()):
            try:
                synchronize(device)
                start = time.perf_counter()
                for _ in range(turn.per_round):
                    turn.step()
                synchronize(device)
                turn.times_ms.append((time.perf_counter() - start) / turn.per_round * 1e3)
            except Exception as error:
                failed[case] = reason_of(error)
                del timed[case]
    return failed


def median_and_spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return median, 10th and 90th percentile."""
    p10, median, p90 = (float(v) for v in np.percentile(values, (10, 50, 90)))
    return median, p10, p90


def ratios(
    own: Sequence[float], reference: Sequence[float], name: str = "backprop", *, what: str = "ratio"
) -> dict[str, Any]:
    """Return the times of a step, and their ratio to a reference, taken in each round; it is called ``what``."""
    median, p10, p90 = median_and_spread(own)
    ratio, low, high = median_and_spread([a / b for a, b in zip(own, reference, strict=True)])
    return {
        "step_ms_median": median,
        "step_ms_p10": p10,
        "step_ms_p90": p90,
        f"{what}_to_{name}": ratio,
        f"{what}_to_{name}_p10": low,
        f"{what}_to_{name}_p90": high,
    }

"""How methods are timed: in turns, in processes that are warm, the others at rest.

A turn of a method is a block of steps, of which the first have no clock: a connection that has rested begins slowly
again (TCP's slow start), and stages that run ahead must first be ahead. Then every process times the same number of steps
for itself, and the slowest counts: of stages, the first may run ahead by its window only, and the last has finished.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from ...wan import Counts, Link, Network, emulated
from ..turns import median_and_spread, ratios
from .cases import Case
from .learn import Goal
from .network import Size
from .session import Session
from .to_loss import steady

__all__ = ["LR", "OTHER_LR", "measure"]

#: Learning rate of all methods, and the other one that true gradients are tried with where training is timed.
LR, OTHER_LR = 3e-4, 1e-3

_FIRST_STEPS, _TRIAL_STEPS = 2, 3
#: Round trips without a clock at the beginning of a turn: so many doublings take slow start past any window here.
_WARM_ROUND_TRIPS = 10
#: Round trips between turns: what was still under way must not count as the next method's.
_QUIET_ROUND_TRIPS = 2
_WARM_SHARE = 0.2
_MOST_WARM_STEPS = 200
_LEARN_TIMEOUT_S = 4 * 3600.0


@dataclass(slots=True)
class _Timings:
    """The timings of one method.

    Attributes:
        warm: steps of a turn without a clock.
        steps: steps of a turn with a clock.
        step_s: approximate time of a step, to know how long to wait.
        times_ms: time of a step in each round.
        turns: answers of the processes in each round.
        link: counts of the emulated link before and after each round.
        peak_bytes: peak memory of each process; None where it is not known.
    """

    warm: int
    steps: int
    step_s: float
    times_ms: list[float] = field(default_factory=list[float])
    turns: list[list[dict[str, Any]]] = field(default_factory=list[list[dict[str, Any]]])
    link: list[tuple[Counts, Counts]] = field(default_factory=list[tuple[Counts, Counts]])
    peak_bytes: list[int | None] = field(default_factory=list[int | None])


def measure(
    cases: Sequence[Case],
    size: Size,
    *,
    link: Link | None,
    rounds: int,
    seconds: float,
    goal: Goal | None,
    data_dir: str | None,
    make_session: Callable[..., Session] = Session,
) -> tuple[dict[Case, dict[str, Any]], dict[Case, str]]:
    """Measure methods in one run; return the metrics of each, and of those that failed the reasons.

    Args:
        cases: the methods.
        size: of what is trained.
        link: to be emulated between the processes; None for the loopback device.
        rounds: in which all take turns.
        seconds: of a turn, about.
        goal: train to this too; None not to.
        data_dir: directory of data files, or None.
        make_session: for tests.

    Raises:
        ConfigError: if no link can be emulated here.
        LinkError: if the emulated link broke down: all is void.
    """
    with (
        nullcontext() if link is None else emulated(link, size.stages) as network,
        make_session(size, LR, data_dir, network) as session,
    ):
        rtt_s = 0.0 if link is None else link.rtt_ms * 1e-3
        timings: dict[Case, _Timings] = {}
        for case in cases:
            if (found := _calibrated(session, case, rtt_s, seconds)) is not None:
                timings[case] = found
        for _ in range(rounds):
            for case in [k for k in timings if k not in session.failed]:
                if link is not None:
                    time.sleep(_QUIET_ROUND_TRIPS * rtt_s)
                _take_turn(session, case, timings[case], network)
        well = {case: s for case, s in timings.items() if case not in session.failed}
        metrics = _metrics(well, size, link)
        if goal is not None:
            session.forget()
            for case in well:
                if metrics[case].get("is_best", True) and not case.is_bound:
                    metrics[case] |= _learned(session, case, goal)
        return metrics, dict(session.failed)


def _calibrated(session: Session, case: Case, rtt_s: float, seconds: float) -> _Timings | None:
    """Build a method, run it until it is warm, and find out how many steps its turn has; None if it fails."""
    if not session.build(case):
        return None
    warm, steps = _FIRST_STEPS, _TRIAL_STEPS
    answers: list[dict[str, Any]] = []
    step_s = 0.0
    for _ in range(2):  # the first trial may be slow: Adam makes its state, connections are made
        found = session.run(case, warm, steps)
        if found is None:
            return None
        answers = found
        step_s = max(a["seconds"] for a in answers) / steps
        least_s = max(_WARM_ROUND_TRIPS * rtt_s, _WARM_SHARE * seconds)
        warm = min(max(1, math.ceil(least_s / step_s)), _MOST_WARM_STEPS)
    peaks = [a["peak_bytes"] for a in answers]
    return _Timings(warm, max(1, round(seconds / step_s)), step_s, peak_bytes=peaks)


def _take_turn(session: Session, case: Case, timings: _Timings, network: Network | None) -> None:
    before = None if network is None else network.counts()
    answers = session.run(case, timings.warm, timings.steps, timings.step_s * (timings.warm + timings.steps))
    if answers is None:
        return
    if network is not None and before is not None:
        timings.link.append((before, network.counts()))
    timings.times_ms.append(max(a["seconds"] for a in answers) / timings.steps * 1e3)
    timings.turns.append(answers)


# -- figures --------------------------------------------------------------------------------------------


def _metrics(timings: dict[Case, _Timings], size: Size, link: Link | None) -> dict[Case, dict[str, Any]]:
    reference = next((s.times_ms for k, s in timings.items() if k.method == "backprop"), None)
    middle = {case: median(s.times_ms) for case, s in timings.items()}
    pipelines = [case for case in timings if case.is_pipeline]
    best = min(pipelines, key=middle.__getitem__, default=None)
    found: dict[Case, dict[str, Any]] = {}
    for case, s in timings.items():
        metrics = _times(s.times_ms)
        if reference is not None:
            metrics |= ratios(s.times_ms, reference, "backprop")
        if best is not None:
            metrics |= ratios(s.times_ms, timings[best].times_ms, "best_pipeline")
        num_examples = size.batch_size * case.batches(size.stages)
        metrics["examples_per_s"] = num_examples / (metrics["step_ms_median"] * 1e-3)
        if case.is_pipeline or (case.is_ours and case.microbatches is not None):
            rivals = [k for k in timings if (k.method, k.variant) == (case.method, case.variant)]
            metrics["is_best"] = case == min(rivals, key=middle.__getitem__)
            metrics |= _cut(timings, case, size)
        elif case.method == "backprop_microbatches" and best is not None:
            metrics["is_best"] = case.microbatches == best.microbatches  # the one to compare with
        metrics |= _sent(s) | _each_way(s, size) | _memory(s) | _stages(s) | _link(s)
        found[case] = metrics | _link_alone(metrics, size, link)
    return found


def _cut(timings: dict[Case, _Timings], case: Case, size: Size) -> dict[str, Any]:
    """Return what a stage loses because its batch is cut: of what one process loses, its share of the layers."""
    whole = timings.get(Case("backprop"))
    cut = timings.get(Case("backprop_microbatches", case.microbatches))
    if whole is None or cut is None:
        return {}
    more = median(a - b for a, b in zip(cut.times_ms, whole.times_ms, strict=True))
    return {"microbatch_overhead_ms": more / size.stages}


def _times(times_ms: Sequence[float]) -> dict[str, Any]:
    step_ms, p10, p90 = median_and_spread(times_ms)
    found = {"step_ms_median": step_ms, "step_ms_p10": p10, "step_ms_p90": p90}
    steadiest = steady(times_ms)
    if steadiest is not None:
        found |= {"steady_step_ms": steadiest[0], "steady_spread_pct": steadiest[1]}
    return found


def _sent(timings: _Timings) -> dict[str, Any]:
    """Return the bytes that all processes together send in a step."""
    total = sum(a["after"]["sent_bytes"] - a["before"]["sent_bytes"] for turn in timings.turns for a in turn)
    losses = [a["loss"] for a in timings.turns[-1] if a["loss"] is not None]
    return {
        "sent_bytes_per_step": total / (len(timings.turns) * timings.steps),
        "train_loss_last": losses[-1] if losses else None,
    }


def _each_way(timings: _Timings, size: Size) -> dict[str, Any]:
    """Return the bytes that cross a link each way for a token, or for an example; the mean over the links."""
    if "sent_up_bytes" not in timings.turns[-1][0]["after"]:
        return {}
    tokens = size.batch_size * (size.context if size.arch == "gpt" else 1)
    steps = len(timings.turns) * timings.steps
    found: dict[str, Any] = {}
    for way in ("up", "down"):
        name = f"sent_{way}_bytes"
        total = sum(a["after"][name] - a["before"][name] for turn in timings.turns for a in turn)
        found[f"{name}_per_row"] = total / steps / tokens / (size.stages - 1)
    return found


def _link_alone(metrics: Mapping[str, Any], size: Size, link: Link | None) -> dict[str, Any]:
    """Return how long the bytes of a step take over a link, the slower way: no step of these bytes can be shorter."""
    if link is None or link.mbit_s is None or "sent_up_bytes_per_row" not in metrics:
        return {}
    rows = size.batch_size * (size.context if size.arch == "gpt" else 1)
    rates = {"up": link.mbit_s, "down": link.down_mbit_s or link.mbit_s}
    ms = max(8e-3 * rows * metrics[f"sent_{way}_bytes_per_row"] / rate for way, rate in rates.items())
    return {"link_alone_ms": ms, "link_alone_ratio": ms / metrics["step_ms_median"]}


def _memory(timings: _Timings) -> dict[str, Any]:
    known = [peak for peak in timings.peak_bytes if peak is not None]
    return {
        "peak_bytes": max(known, default=None),
        **{f"peak_bytes_stage{k}": peak for k, peak in enumerate(timings.peak_bytes)},
    }


def _stages(timings: _Timings) -> dict[str, Any]:
    """Return what stages tell of themselves: how long they waited in a step, how far they were ahead."""
    if "window" not in timings.turns[-1][0]["after"]:
        return {}
    found: dict[str, Any] = {
        "cuts": timings.turns[-1][0]["after"]["cuts"],
        "window_steps": timings.turns[-1][0]["after"]["window"],
        "round_trip_ms": 1e3 * timings.turns[-1][0]["after"]["round_trip_s"],
    }
    snapshot_s = max(answer["after"]["snapshot_s"] for answer in timings.turns[-1])
    found |= {"snapshot_ms": 1e3 * snapshot_s, "throughput_ratio_saved_every_minute": 60 / (60 + snapshot_s)}
    for stage in range(len(timings.turns[-1])):
        for name in ("waited", "busy"):
            spent = [
                turn[stage]["after"][f"{name}_s"] - turn[stage]["before"][f"{name}_s"]
                for turn in timings.turns
            ]
            found[f"{name}_ms_stage{stage}"] = 1e3 * median(spent) / timings.steps
    slowest = max(value for name, value in found.items() if name.startswith("busy_ms_stage"))
    return found | {"pace_ratio": slowest / median(timings.times_ms)}


def _link(timings: _Timings) -> dict[str, Any]:
    """Return what the emulated link has carried and what it cost, over this method's turns; nothing without one."""
    if not timings.link:
        return {}

    def total(name: str) -> float:
        return sum(getattr(after, name) - getattr(before, name) for before, after in timings.link)

    steps = len(timings.link) * (timings.warm + timings.steps)
    return {
        "link_bytes_per_step": total("wire_bytes") / steps,
        "link_num_dropped": total("num_dropped"),
        "link_cpu_ms_per_step": 1e3 * total("cpu_s") / steps,
        "link_late_ms": 1e3 * total("late_s") / max(1.0, total("num_frames")),
        # Of the whole run so far: the relay keeps one maximum.
        "link_latest_ms": 1e3 * timings.link[-1][1].latest_s,
    }


def _learned(session: Session, case: Case, goal: Goal) -> dict[str, Any]:
    """Train a method to an accuracy; with true gradients also with the other learning rate."""
    to = asdict(goal)
    found = session.learn(case, LR, to, _LEARN_TIMEOUT_S)
    if case.is_ours or "learn_error" in found:
        return found
    other = session.learn(case, OTHER_LR, to, _LEARN_TIMEOUT_S)
    names = {
        "time_to_accuracy_s": "time_to_accuracy_other_lr_s",
        "steps_to_accuracy": "steps_to_accuracy_other_lr",
    }
    return found | {new: other.get(name) for name, new in names.items()} | {"other_lr": OTHER_LR}

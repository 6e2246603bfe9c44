"""``bench kills``: runs of every engine and loop are killed at random moments, resumed, and held against runs that were not.

A line is a kill. It fails where the run that was killed ends in another way than the one that was not: in a figure, in a
bit of the weights, or not at all.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....core import ConfigError
from ...training.payloads import Characters, Copying, FeedForward, LstmStack, Multirate, Payload
from ...training.run import Run
from ...training.settings import BoundarySettings, EdgeSettings, RuleSettings, Schedule, Settings
from ..base import Bench, Figures
from ..declarations import KILLS, KillsScope
from .killed_runs import Outcome, difference, get_ready, kill_until_it_ends, uninterrupted

__all__ = ["BENCHMARK", "VICTIMS", "PlannedKill", "Kills", "KillsBench", "Victim"]

#: Seconds between two snapshots: small beside a run of seconds.
_EVERY_S = 0.05
_SIGNALS = ("SIGKILL", "SIGTERM")
#: Kills of one run, at most.
_MOST = 8


@dataclass(frozen=True, slots=True)
class Victim:
    """A run that is killed.

    Attributes:
        loop: kind of the training loop, as recorded.
        engine: name of the engine, as recorded.
        config: the run, but for its seed.
        stages: number of processes.
    """

    loop: str
    engine: str
    config: Run
    stages: int = 1


@dataclass(frozen=True, slots=True)
class Kills:
    """The kills of one run.

    Attributes:
        victim: the run.
        num: number of kills.
        seed: seed of the run and of the moments.
    """

    victim: Victim
    num: int
    seed: int


@dataclass(frozen=True, slots=True)
class PlannedKill:
    """A kill that is planned.

    Attributes:
        number: its place among those of its run.
        signal: name of the signal.
        share: share of an undisturbed run's time after which it comes.
    """

    number: int
    signal: str
    share: float


def _images(method: str, engine: str, **rule: Any) -> Run:
    at = ("layer1",) if engine == "stages" else ()
    payload = FeedForward(data="mnist-10k", layers=3, width=16, at=at, engine=engine)
    schedule = Schedule(400, 32, lr=1e-3, eval_every=200)
    return Run("compare", "custom", method, 0, payload.for_method(method), schedule, RuleSettings(**rule))


def _recurrent(experiment: str, method: str, payload: Payload, rule: Settings, steps: int = 200) -> Run:
    schedule = Schedule(steps, 16, lr=3e-3, milestones=(), eval_every=steps // 2)
    return Run(experiment, "custom", method, 0, payload, schedule, rule)


def _stack(engine: str, **rule: Any) -> Run:
    payload = LstmStack(data="shakespeare-50k", layers=2, width=16, engine=engine, most_valid=1000)
    return _recurrent("stacks", "cdni", payload, RuleSettings(**rule))


_CHARACTERS = Characters(data="shakespeare-50k", width=32, most_valid=1000)
_COPYING = Copying(data="copy", width=32, unroll=3)
_MULTIRATE = Multirate(data="mnist-10k", width=16, period=2)

VICTIMS = (
    Victim("feed-forward", "plain", _images("backprop", "plain")),
    Victim("feed-forward", "in-process", _images("cdni", "in-process")),
    Victim("feed-forward", "layer-parallel", _images("cdni", "layer-parallel")),
    # Modules wait for the true gradient over steps: their graphs are built again.
    Victim("delayed gradients", "in-process", _images("delayed", "in-process", delay=2)),
    # Of a given lag: then the same steps give the same bits.
    Victim("feed-forward", "stages", _images("cdni", "stages", delay=1), 2),
    Victim("characters", "recurrent", _recurrent("charlm", "dni", _CHARACTERS, BoundarySettings())),
    Victim("copy", "recurrent", _recurrent("copy", "dni", _COPYING, BoundarySettings(), 120)),
    Victim("two clocks", "clocked", _recurrent("multinet", "dni", _MULTIRATE, EdgeSettings(), 100)),
    Victim("stack", "in-process", _stack("in-process")),
    Victim("stack", "stages", _stack("stages", delay=1), 2),
)


class KillsBench(Bench[KillsScope, Kills, PlannedKill]):
    """Tiny runs, killed some times each; ``rounds`` is the number of kills of all."""

    declared = KILLS
    optimizer = ""

    def check(self, scope: KillsScope) -> None:
        if os.name != "posix":
            raise ConfigError("bench kills: this system has no POSIX signals; run it on Linux or macOS")

    def sizes(self, scope: KillsScope) -> Iterable[Kills]:
        victims = [victim for victim in VICTIMS if victim.config.method in scope.methods]
        for seed in scope.seeds:
            for victim, num in zip(victims, _shares(victims, scope.rounds), strict=True):
                if num:
                    yield Kills(victim, num, seed)

    def cases(self, scope: KillsScope, size: Kills) -> Sequence[PlannedKill]:
        draws = random.Random(f"{size.seed} {size.victim.loop} {size.victim.engine}")
        return [PlannedKill(number, draws.choice(_SIGNALS), draws.random()) for number in range(size.num)]

    def method(self, size: Kills, case: PlannedKill) -> str:
        return size.victim.config.method

    def cell(self, scope: KillsScope, size: Kills, case: PlannedKill) -> Mapping[str, Any]:
        victim = size.victim
        return {
            "engine": victim.engine,
            "loop": victim.loop,
            "signal": case.signal,
            "number": case.number,
        }

    def config(self, scope: KillsScope, size: Kills, case: PlannedKill) -> Mapping[str, Any]:
        return {"every_s": _EVERY_S, "share": round(case.share, 4)}

    def label(self, scope: KillsScope, size: Kills) -> str:
        return f"{size.victim.loop}, {size.victim.engine}, {size.num} times"

    def measure(self, scope: KillsScope, size: Kills, cases: Sequence[PlannedKill]) -> Iterator[Figures]:
        stages, plan = size.victim.stages, [(case.signal, case.share) for case in cases]
        config: Any = size.victim.config
        config = replace(config, seed=size.seed)
        with tempfile.TemporaryDirectory(prefix="synthgrad-kills-", ignore_cleanup_errors=True) as folder:
            get_ready()
            reference = uninterrupted(config, Path(folder, "whole"), _EVERY_S, stages)
            done, run = 0, 0
            while done < len(plan):
                run += 1
                part = [(name, share * reference.seconds) for name, share in plan[done : done + _MOST]]
                outcome = kill_until_it_ends(config, Path(folder, f"run{run}"), _EVERY_S, stages, part)
                error = _wrong(outcome, reference)
                if not outcome.kills and error is None:
                    # It ended before its first kill: the moment is drawn again, a little earlier.
                    plan[done] = (plan[done][0], 0.9 * plan[done][1])
                    continue
                for kill in outcome.kills:
                    yield Figures(
                        {
                            "after_s": round(kill.after_s, 3),
                            "resumed_steps": kill.resumed_steps,
                            "lost_s": round(kill.lost_s, 3),
                        },
                        error,
                    )
                if not outcome.kills:
                    yield Figures(error=error)
                done += max(1, len(outcome.kills))


def _shares(victims: Sequence[Victim], total: int) -> list[int]:
    """Return kills of each run: a fifth, of few a tenth, for those of several processes, which start slowly."""
    shares = [0] * len(victims)
    slow = [k for k, victim in enumerate(victims) if victim.stages > 1]
    quick = [k for k, victim in enumerate(victims) if victim.stages == 1]
    num_slow = total if not quick else 0 if not slow else total // 5 if total >= 100 else total // 10
    for group, num in ((slow, num_slow), (quick, total - num_slow)):
        for turn in range(num):
            shares[group[turn % len(group)]] += 1
    return shares


def _wrong(outcome: Outcome, reference: Outcome) -> str | None:
    """Say what is wrong with the end of a run that was killed; None for nothing."""
    if reference.error or reference.record is None:
        return f"the run that was not killed did not end: {reference.error}"
    if outcome.error or outcome.record is None:
        return f"the run did not end: {outcome.error}"
    return difference(outcome.record, reference.record)


BENCHMARK = KillsBench()

"""``bench kills``: runs of every engine and loop are killed at random moments, resumed, and held against runs that were not.

A line is a kill. It fails where the run that was killed ends in another way than the one that was not: in a figure, in a
bit of the weights, or not at all.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ....core import ConfigError
from ...training.payloads import Characters, Copying, FeedForward, LstmStack, Multirate
from ...training.run import Run
from ...training.settings import BoundarySettings, EdgeSettings, RuleSettings, Schedule
from ...records import Record
from ..base import Scope, Setting, blank_line, finish_line
from .killed_runs import Outcome, difference, get_ready, kill_until_it_ends, uninterrupted

__all__ = ["KillsBench"]

#: Seconds between two snapshots: small beside a run of seconds.
_EVERY_S = 0.05
_SIGNALS = ("SIGKILL", "SIGTERM")
#: Kills of one run, at most.
_MOST = 8


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is killed.

    Attributes:
        loop, engine: as recorded.
        config: the run, but for its seed.
        stages: processes.
    """

    loop: str
    engine: str
    config: Run
    stages: int = 1


def _images(method: str, engine: str, **rule: Any) -> Run:
    at = ("layer1",) if engine == "stages" else ()
    payload = FeedForward(data="mnist-10k", layers=3, width=16, at=at, engine=engine)
    schedule = Schedule(400, 32, lr=1e-3, eval_every=200)
    return Run("compare", "custom", method, 0, payload.of_method(method), schedule, RuleSettings(**rule))


def _stack(engine: str, **rule: Any) -> Run:
    payload = LstmStack(data="shakespeare-50k", layers=2, width=16, engine=engine, most_valid=1000)
    schedule = Schedule(200, 16, lr=3e-3, milestones=(), eval_every=100)
    return Run("stacks", "custom", "cdni", 0, payload, schedule, RuleSettings(**rule))


_KINDS = (
    _Kind("feed-forward", "plain", _images("backprop", "plain")),
    _Kind("feed-forward", "in-process", _images("cdni", "in-process")),
    _Kind("feed-forward", "layer-parallel", _images("cdni", "layer-parallel")),
    # Modules wait for the true gradient over steps: their graphs are built again.
    _Kind("delayed gradients", "in-process", _images("delayed", "in-process", delay=2)),
    # Of a given lag: then the same steps give the same bits.
    _Kind("feed-forward", "stages", _images("cdni", "stages", delay=1), 2),
    _Kind(
        "characters",
        "recurrent",
        Run(
            *("charlm", "custom", "dni", 0),
            Characters(data="shakespeare-50k", width=32, most_valid=1000),
            Schedule(200, 16, lr=3e-3, milestones=(), eval_every=100),
            BoundarySettings(),
        ),
    ),
    _Kind(
        "copy",
        "recurrent",
        Run(
            *("copy", "custom", "dni", 0),
            Copying(data="copy", width=32, unroll=3),
            Schedule(120, 16, lr=3e-3, milestones=(), eval_every=60),
            BoundarySettings(),
        ),
    ),
    _Kind(
        "two clocks",
        "clocked",
        Run(
            *("multinet", "custom", "dni", 0),
            Multirate(data="mnist-10k", width=16, period=2),
            Schedule(100, 16, lr=3e-3, milestones=(), eval_every=50),
            EdgeSettings(),
        ),
    ),
    _Kind("stack", "in-process", _stack("in-process")),
    _Kind("stack", "stages", _stack("stages", delay=1), 2),
)


class KillsBench:
    """Tiny runs, killed some times each; ``rounds`` is the number of kills of all."""

    name = "kills"
    about = "runs killed at random moments and resumed, held bit by bit against runs that were not"
    tiers = {
        "smoke": Scope((16,), (3,), (32,), ("backprop", "cdni", "delayed", "dni"), rounds=10, tier="smoke"),
        "quick": Scope((16,), (3,), (32,), ("backprop", "cdni", "delayed", "dni"), rounds=200, tier="quick"),
        "full": Scope((16,), (3,), (32,), ("backprop", "cdni", "delayed", "dni"), rounds=2000, tier="full"),
    }
    networks = {"fcn": tiers}

    def settings(self, scope: Scope) -> list[Setting]:
        """Return a setting for each loop and engine, with a line for each of its kills.

        Raises:
            ConfigError: if something else is asked for, or the system has no such signals.
        """
        if os.name != "posix":
            raise ConfigError("bench kills: this system has no POSIX signals; run it on Linux or macOS")
        usual = self.tiers["quick"]
        for name in ("widths", "layers", "batch_sizes", "compiled", "precision"):
            if getattr(scope, name) != getattr(usual, name):
                raise ConfigError(
                    f"bench kills: {name} {getattr(scope, name)}: its runs are given; leave that out"
                )
        if scope.learn:
            raise ConfigError("bench kills trains to no accuracy; leave out --learn")
        kinds = [kind for kind in _KINDS if kind.config.method in scope.methods]
        if unknown := set(scope.methods) - {kind.config.method for kind in _KINDS}:
            raise ConfigError(
                f"method '{sorted(unknown)[0]}' is unknown to bench kills; accepted: {', '.join(usual.methods)}"
            )
        scope = replace(scope, device="cpu")  # whatever else there is
        return [
            self._setting(scope, kind, num, seed)
            for seed in scope.seeds
            for kind, num in zip(kinds, _shares(kinds, scope.rounds), strict=True)
            if num
        ]

    def _setting(self, scope: Scope, kind: _Kind, num: int, seed: int) -> Setting:
        draws = random.Random(f"{seed} {kind.loop} {kind.engine}")
        plan = [(draws.choice(_SIGNALS), draws.random()) for _ in range(num)]
        lines = [
            blank_line(
                self.name,
                kind.config.method,
                scope,
                seed,
                {"engine": kind.engine, "loop": kind.loop, "signal": name, "number": number},
                {"every_s": _EVERY_S, "share": round(share, 4)},
            )
            for number, (name, share) in enumerate(plan)
        ]
        label = f"kills: {kind.loop}, {kind.engine}, {num} times"
        return Setting(
            label, lines, partial(_measure, replace(kind, config=_seeded(kind, seed)), lines, plan)
        )


def _seeded(kind: _Kind, seed: int) -> Run:
    return replace(kind.config, seed=seed)


def _shares(kinds: Sequence[_Kind], total: int) -> list[int]:
    """Return kills of each kind: a fifth, of few a tenth, for those of several processes, which start slowly."""
    shares = [0] * len(kinds)
    slow = [k for k, kind in enumerate(kinds) if kind.stages > 1]
    quick = [k for k, kind in enumerate(kinds) if kind.stages == 1]
    num_slow = total if not quick else 0 if not slow else total // 5 if total >= 100 else total // 10
    for group, num in ((slow, num_slow), (quick, total - num_slow)):
        for turn in range(num):
            shares[group[turn % len(group)]] += 1
    return shares


def _measure(kind: _Kind, lines: Sequence[Record], plan: Sequence[tuple[str, float]]) -> Iterator[Record]:
    with tempfile.TemporaryDirectory(prefix="synthgrad-kills-", ignore_cleanup_errors=True) as folder:
        get_ready()
        reference = uninterrupted(kind.config, Path(folder, "whole"), _EVERY_S, kind.stages)
        done, run = 0, 0
        while done < len(lines):
            run += 1
            part = [(name, share * reference.seconds) for name, share in plan[done : done + _MOST]]
            outcome = kill_until_it_ends(kind.config, Path(folder, f"run{run}"), _EVERY_S, kind.stages, part)
            error = _wrong(outcome, reference)
            if not outcome.kills and error is None:
                # It ended before its first kill: the moment is drawn again, a little earlier.
                plan = [*plan[:done], (plan[done][0], 0.9 * plan[done][1]), *plan[done + 1 :]]
                continue
            for line, kill in zip(lines[done:], outcome.kills or (None,), strict=False):
                metrics = {} if kill is None else {
                    "after_s": round(kill.after_s, 3),
                    "resumed_steps": kill.resumed_steps,
                    "lost_s": round(kill.lost_s, 3),
                }  # fmt: skip
                yield finish_line(line, "cpu", metrics, error)
            done += max(1, len(outcome.kills))


def _wrong(outcome: Outcome, reference: Outcome) -> str | None:
    """Say what is wrong with the end of a run that was killed; None for nothing."""
    if reference.error or reference.record is None:
        return f"the run that was not killed did not end: {reference.error}"
    if outcome.error or outcome.record is None:
        return f"the run did not end: {outcome.error}"
    return difference(outcome.record, reference.record)

"""``bench damage``: inputs of every kind are damaged and read; a line counts what became of those of a kind.

A line fails where one ended in a traceback, hung, or was gone on with as if nothing were wrong.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ....core import ConfigError
from ...records import Record
from ..base import Scope, Setting, blank_line, finish_line
from .damaged_inputs import INPUTS as FILES
from .damaged_inputs import OUTCOMES, Input, try_one
from .damaged_peers import PARCELS

__all__ = ["INPUTS", "DamageBench"]

#: All kinds of inputs but those of the command line.
INPUTS = (*FILES, *PARCELS)

_FAULTS = OUTCOMES[-3:]


class DamageBench:
    """Small inputs; ``rounds`` is the number of damaged ones of all kinds together.

    Args:
        inputs: the kinds. The command line adds its own, which this folder knows nothing of.
    """

    def __init__(self, inputs: Sequence[Input] = INPUTS) -> None:
        self._inputs = inputs

    name = "damage"
    about = (
        "damaged data, texts, records, snapshots, parcels and command lines: refused, told, or gone on with"
    )
    tiers = {
        "smoke": Scope((16,), (3,), (32,), ("reader",), rounds=200, tier="smoke"),
        "quick": Scope((16,), (3,), (32,), ("reader",), rounds=10_000, tier="quick"),
        "full": Scope((16,), (3,), (32,), ("reader",), rounds=100_000, tier="full"),
    }
    networks = {"fcn": tiers}

    def settings(self, scope: Scope) -> list[Setting]:
        """Return a setting for each kind of input and seed, with one line.

        Raises:
            ConfigError: if something else is asked for.
        """
        usual = self.tiers["quick"]
        for name in ("widths", "layers", "batch_sizes", "methods", "compiled", "precision", "learn"):
            if getattr(scope, name) != getattr(usual, name):
                raise ConfigError(
                    f"bench damage: {name} {getattr(scope, name)}: it trains nothing; leave that out"
                )
        scope = replace(scope, device="cpu")
        return [
            self._setting(scope, kind, len(range(k, scope.rounds, len(self._inputs))), seed)
            for seed in scope.seeds
            for k, kind in enumerate(self._inputs)
            if k < scope.rounds
        ]

    def _setting(self, scope: Scope, kind: Input, num: int, seed: int) -> Setting:
        lines = [blank_line(self.name, "reader", scope, seed, {"input": kind.name}, {})]
        return Setting(f"damage: {kind.name}, {num} times", lines, partial(_measure, kind, num, lines))


def _measure(kind: Input, num: int, lines: Sequence[Record]) -> Iterator[Record]:
    (line,) = lines
    counts: Counter[str] = Counter()
    faults: list[str] = []
    draws = random.Random(f"{line['seed']} {kind.name}")
    with tempfile.TemporaryDirectory(prefix="synthgrad-damage-") as folder:
        path = kind.make(Path(folder))
        content, whole = path.read_bytes(), kind.take(path)
        for _ in range(num):
            outcome, words = try_one(kind, path, content, whole, draws)
            counts[outcome] += 1
            if outcome in _FAULTS:
                faults.append(words.replace(folder, ""))
    metrics = {"inputs": num, **{name: counts[name] for name in OUTCOMES}}
    error = f"{len(faults)} of {num} are faults, the first: {faults[0]}" if faults else None
    yield finish_line(line, "cpu", metrics, error)

"""``bench damage``: inputs of every sort are damaged and read; a line counts the outcomes of one sort.

A line fails if an input ended in a traceback, hung, or was used as if nothing were wrong.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base import Bench, Figures
from ..declarations import DAMAGE, DamageScope
from .damaged_inputs import INPUTS as FILES
from .damaged_inputs import OUTCOMES, Input, try_one
from .damaged_peers import PARCELS

__all__ = ["BENCHMARK", "INPUTS", "DamageBench"]

#: All sorts of inputs but those of the command line.
INPUTS = (*FILES, *PARCELS)

_FAULTS = OUTCOMES[-3:]


@dataclass(frozen=True, slots=True)
class _Share:
    """The damaged inputs of one sort.

    Attributes:
        input: the sort.
        num: how many.
        seed: of the damage.
    """

    input: Input
    num: int
    seed: int


class DamageBench(Bench[DamageScope, _Share, str]):
    """Small inputs; ``rounds`` is the number of damaged ones of all sorts together.

    Args:
        inputs: the sorts. The command line adds its own.
    """

    declared = DAMAGE
    optimizer = ""

    def __init__(self, inputs: Sequence[Input] = INPUTS) -> None:
        self._inputs = inputs

    def sizes(self, scope: DamageScope) -> Iterable[_Share]:
        for seed in scope.seeds:
            for k, each in enumerate(self._inputs):
                if num := len(range(k, scope.rounds, len(self._inputs))):
                    yield _Share(each, num, seed)

    def cases(self, scope: DamageScope, size: _Share) -> Sequence[str]:
        return ("reader",)

    def cell(self, scope: DamageScope, size: _Share, case: str) -> Mapping[str, Any]:
        return {"input": size.input.name}

    def label(self, scope: DamageScope, size: _Share) -> str:
        return f"{size.input.name}, {size.num} times"

    def measure(self, scope: DamageScope, size: _Share, cases: Sequence[str]) -> Iterator[Figures]:
        counts: Counter[str] = Counter()
        faults: list[str] = []
        draws = random.Random(f"{size.seed} {size.input.name}")
        with tempfile.TemporaryDirectory(prefix="synthgrad-damage-") as folder:
            path = size.input.make(Path(folder))
            content, whole = path.read_bytes(), size.input.read(path)
            for _ in range(size.num):
                outcome, words = try_one(size.input, path, content, whole, draws)
                counts[outcome] += 1
                if outcome in _FAULTS:
                    faults.append(words.replace(folder, ""))
        metrics = {"inputs": size.num, **{name: counts[name] for name in OUTCOMES}}
        error = f"{len(faults)} of {size.num} are faults, the first: {faults[0]}" if faults else None
        yield Figures(metrics, error)


BENCHMARK = DamageBench()

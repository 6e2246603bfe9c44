"""``bench unroll``: the time of an unroll of a recurrent network over that of a hand-written truncated BPTT.

All take turns on the same tokens; the ratio is taken in each round.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from ...core import ConfigError
from ..training.recurrent_methods import RECURRENT_METHODS
from ..records import Record
from .base import Scope, Setting, blank_line, finish_line
from .turns import Turn, ratios, reason_of, take_turns, warmed_up
from .unroll_maker import HAND_WRITTEN, UnrollSize, make_unroll

__all__ = ["METHODS", "UnrollBench"]

METHODS = tuple(RECURRENT_METHODS)


class UnrollBench:
    """Unrolls of a character model: an LSTM on one-hot tokens, a linear output, Adam (fused)."""

    name = "unroll"
    about = "time of an unroll of a recurrent network, over a hand-written truncated BPTT"
    tiers = {
        "smoke": Scope((16,), (1,), (8,), METHODS, rounds=2, seconds=0.01, unrolls=(3,), tier="smoke"),
        "quick": Scope(
            (256,), (1,), (256,), METHODS, rounds=15, seconds=0.3, unrolls=(3, 5, 10, 20), tier="quick"
        ),
        "full": Scope(
            (256, 1024),
            (1,),
            (256,),
            METHODS,
            rounds=15,
            seconds=0.3,
            unrolls=(2, 3, 4, 5, 8, 20, 40),
            tier="full",
        ),
    }
    networks = {"fcn": tiers}

    def settings(self, scope: Scope) -> list[Setting]:
        """Return one setting for each width, batch size, length of unroll and seed.

        Raises:
            ConfigError: if something is asked for that is not measured.
        """
        for method in scope.methods:
            if method not in METHODS:
                raise ConfigError(
                    f"method '{method}' is unknown to bench unroll; accepted: {', '.join(METHODS)}"
                )
        if (
            scope.learn
            or True in scope.compiled
            or tuple(scope.layers) != (1,)
            or scope.precision != "float32"
        ):
            raise ConfigError(
                "bench unroll measures one recurrent layer, eager, in float32, and trains to no accuracy; leave out "
                "--learn, --layers, --precision and --modes compiled"
            )
        sizes = itertools.product(scope.seeds, scope.widths, scope.batch_sizes, scope.unrolls)
        return [self._setting(scope, UnrollSize(w, t, t, b), seed) for seed, w, b, t in sizes]

    def _setting(self, scope: Scope, size: UnrollSize, seed: int) -> Setting:
        cell: dict[str, Any] = {
            "arch": "lstm",
            "width": size.width,
            "layers": 1,
            "batch_size": size.batch_size,
            "unroll": size.unroll,
            "threads": scope.threads,
        }
        methods = (HAND_WRITTEN, *scope.methods)
        config = {"optimizer": "Adam, fused", "seconds": scope.seconds}
        lines = [blank_line(self.name, method, scope, seed, cell, config) for method in methods]
        label = f"unroll: LSTM {size.width}, batch {size.batch_size}, T {size.unroll}"
        return Setting(label, lines, partial(_measure, scope, size, lines))


def _measure(scope: Scope, size: UnrollSize, lines: Sequence[Record]) -> Iterator[Record]:
    turns: dict[str, Turn] = {}
    failed: dict[str, str] = {}
    for line in lines:
        method = str(line["method"])
        try:
            step, _ = make_unroll(method, size, line["seed"], scope.device)
            turns[method] = warmed_up(step, scope.seconds, scope.device)
        except Exception as error:  # a peer that fails is a line that says so
            failed[method] = reason_of(error)
    failed |= take_turns(turns, scope.rounds, scope.device)
    reference = turns.get(HAND_WRITTEN)
    for line in lines:
        method = str(line["method"])
        metrics: dict[str, Any] = {}
        error = failed.get(method)
        if method in turns and reference is not None:
            metrics = ratios(turns[method].times_ms, reference.times_ms, "hand_written")
        elif error is None:
            error = "the hand-written loop, to which it is compared, could not be measured"
        yield finish_line(line, scope.device, metrics, error)

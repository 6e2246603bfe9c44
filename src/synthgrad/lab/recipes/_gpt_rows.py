"""The rows of the table of language models, each with the learning rates that `gpt_search` tries and the one it chose.

A row's rate has the lowest validation loss in `gpt_search`, which trains for a sixth of the length with a seed of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from ..training.settings import RuleSettings, Schedule
from ._experiment import Variant

__all__ = ["ROWS", "WEIGHTS", "Row", "chosen", "in_microbatches", "row_of", "searched", "weights"]


@dataclass(frozen=True, slots=True)
class Row:
    """A method, with how it is cut and updated.

    Attributes:
        method: name of the method.
        rates: learning rates that `gpt_search` tries, ascending.
        rate: the one among them that it chose.
        rule: settings of the rule; None for backpropagation.
        optimizer: name of the optimizer.
        modules: number of modules.
        schedule: further fields of the schedule that differ from the others' rows.
        claimed: does the page claim something of this row? Then it is run with every seed, otherwise with the first alone.
        again: is it among the rows that are trained on Penn Treebank too?
    """

    method: str
    rates: tuple[float, ...]
    rate: float
    rule: RuleSettings | None = None
    optimizer: str = "muon"
    modules: int = 2
    schedule: dict[str, Any] = field(default_factory=dict[str, Any])
    claimed: bool = False
    again: bool = False

    def variant(self, rate: float) -> Variant:
        """Return the row as a variant with a learning rate."""
        schedule = {"optimizer": self.optimizer, "lr": rate, **self.schedule}
        return Variant(self.method, self.rule, payload={"modules": self.modules}, schedule=schedule)


def _head(**settings: Any) -> RuleSettings:
    """Return settings of a rule whose head scores tokens."""
    return RuleSettings(head="tokens", **settings)


def _late(lag: int) -> RuleSettings:
    return RuleSettings(delay=lag)


def _corrected(lag: int, **settings: Any) -> RuleSettings:
    return _head(**{"blocks": 0, "delay": lag, "weight": None, **settings})


_FEEDBACK = {"error_feedback": True}

#: An octave apart. Late gradients need lower ones, the lower the later they come. Where the best of a row was the lowest or
#: the highest, another was added beyond it.
_RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)


def _rates(lowest: float, highest: float) -> tuple[float, ...]:
    return tuple(rate for rate in _RATES if lowest <= rate <= highest)


ROWS: tuple[Row, ...] = (
    # Everything waits: the references.
    Row("backprop", _rates(2e-3, 1.6e-2), 4e-3, optimizer="adamw", claimed=True),
    Row("backprop", _rates(8e-3, 3.2e-2), 1.6e-2, claimed=True, again=True),
    # The true gradient, one update late.
    Row("delayed", _rates(5e-4, 8e-3), 1e-3, _late(1), "adamw"),
    Row("delayed", _rates(1e-3, 8e-3), 2e-3, _late(1), "adamw", schedule=_FEEDBACK, claimed=True),
    Row("delayed", _rates(4e-3, 3.2e-2), 1.6e-2, _late(1)),
    Row("delayed", _rates(4e-3, 3.2e-2), 1.6e-2, _late(1), schedule=_FEEDBACK, claimed=True, again=True),
    # The true gradient, four and sixteen updates late.
    Row("delayed", _rates(2.5e-4, 2e-3), 5e-4, _late(4), "adamw"),
    Row("delayed", _rates(2e-3, 1.6e-2), 8e-3, _late(4)),
    Row("delayed", _rates(1e-3, 1.6e-2), 8e-3, _late(16)),
    # Nothing from above: a linear head, or private blocks before it.
    Row("local_loss", _rates(2e-3, 8e-3), 4e-3, _head(blocks=2), "adamw", claimed=True),
    Row("local_loss", _rates(8e-3, 3.2e-2), 1.6e-2, _head(blocks=0), claimed=True, again=True),
    Row("local_loss", _rates(8e-3, 1.6e-2), 1.6e-2, _head(blocks=1), claimed=True),
    Row("local_loss", _rates(8e-3, 3.2e-2), 1.6e-2, _head(blocks=2)),
    Row("local_loss", _rates(8e-3, 3.2e-2), 1.6e-2, _head(blocks=0), modules=4, claimed=True, again=True),
    Row("local_loss", _rates(8e-3, 1.6e-2), 1.6e-2, _head(blocks=1), modules=4),
    Row("local_loss", _rates(2e-3, 8e-3), 4e-3, _head(blocks=1), "adamw", modules=4, claimed=True),
    # The same with the network's own unembedding in the heads, which is little, and comes from above.
    Row("local_loss", _rates(8e-3, 1.6e-2), 1.6e-2, _head(blocks=0, unembedding="network")),
    Row("local_loss", _rates(8e-3, 1.6e-2), 1.6e-2, _head(blocks=0, unembedding="network"), modules=4),
    # Other credit at once.
    Row("cdni", _rates(2e-3, 1.6e-2), 4e-3, RuleSettings(label_rate=1.0)),
    Row("interlocked", _rates(8e-3, 1.6e-2), 1.6e-2, _head(blocks=0), modules=4, claimed=True),
    Row("interlocked", _rates(8e-3, 1.6e-2), 1.6e-2, _head(blocks=1), modules=4, claimed=True),
    Row("head_gradient", _rates(8e-3, 1.6e-2), 1.6e-2, _head(blocks=0)),
    # Credit at once, corrected by late messages with the weight that the rule itself finds; all of them, or a quarter.
    Row("late_correction", (1.6e-2,), 1.6e-2, _corrected(1)),
    Row("late_correction", _rates(8e-3, 1.6e-2), 1.6e-2, _corrected(4), claimed=True, again=True),
    Row("late_correction", _rates(8e-3, 1.6e-2), 1.6e-2, _corrected(4, blocks=1)),
    Row("late_correction", _rates(8e-3, 1.6e-2), 1.6e-2, _corrected(16), claimed=True),
    Row("late_correction", (1.6e-2,), 1.6e-2, _corrected(4, share=0.25), claimed=True),
    Row("late_correction", (1.6e-2,), 1.6e-2, _corrected(4), modules=4),
)

#: What the weight of a correction could be instead, by lag, share and private blocks: below and above what the rule finds.
WEIGHTS: tuple[tuple[RuleSettings, float], ...] = tuple(
    (_corrected(lag, share=share, blocks=blocks, weight=weight), 1.6e-2)
    for lag, share, blocks, weights in (
        (1, 1.0, 0, (0.25, 0.5, 1.0)),
        (4, 1.0, 0, (0.1, 0.2, 0.4, 0.8)),
        (4, 1.0, 1, (0.2, 0.4, 0.8)),
        (16, 1.0, 0, (0.03, 0.06, 0.12, 0.25, 0.5, 1.0)),
        (4, 0.25, 0, (0.0125, 0.05, 0.2, 1.0)),
    )
    for weight in weights
)


def row_of(method: str, optimizer: str, *, delay: int = 0, error_feedback: bool = False) -> Row:
    """Return the row of a method whose rule is not looked into, except for its delay."""
    (found,) = [
        row
        for row in ROWS
        if (row.method, row.optimizer) == (method, optimizer)
        and (0 if row.rule is None else row.rule.delay) == delay
        and bool(row.schedule.get("error_feedback")) == error_feedback
    ]
    return found


def chosen(rows: Iterable[Row]) -> list[Variant]:
    """Return rows with the rates that the search chose."""
    return [row.variant(row.rate) for row in rows]


def in_microbatches(schedule: Schedule, count: int) -> Schedule:
    """Return a schedule of the same updates, each of several microbatches."""
    return replace(
        schedule,
        steps=count * schedule.steps,
        batch_size=schedule.batch_size // count,
        eval_every=count * schedule.eval_every,
        lr_warm_up=count * schedule.lr_warm_up,
        accumulate=count,
    )


def searched(rows: Iterable[Row]) -> list[Variant]:
    """Return every row with each of its rates."""
    return [row.variant(rate) for row in rows for rate in row.rates]


def weights() -> list[Variant]:
    """Return late corrections with constant weights, at the learning rate of those whose weight is found."""
    return [Row("late_correction", (rate,), rate, rule).variant(rate) for rule, rate in WEIGHTS]

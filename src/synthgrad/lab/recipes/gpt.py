"""A GPT in two and in four modules: bits per character of every way to train them, at the best learning rate of each.

Rates were chosen by `gpt_search`, on validation text, with a seed of its own. Lags are numbers of batches for each interface
that a message crosses; an update is made of a batch, so that a message ``n`` batches late is ``n`` updates late. The
last group makes the same updates of four microbatches each: what is up to four microbatches late is then one update late,
with two versions of the weights (2BW) or with one (PACI).

Rows that the page claims something of are trained with every seed, the others with the first one alone::

    synthgrad run gpt --seeds 0,1,2 --threads 1 --out DIR
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..training.payloads import LanguageModel
from ..training.settings import RuleSettings, Schedule
from ._experiment import Experiment, Group, Variant
from ._gpt_rows import ROWS, chosen, in_microbatches, row_of

__all__ = ["EXPERIMENT"]

#: Microbatches of an update, in the group of updates that are made of several.
_MICROBATCHES = 4
#: Width of the network for which the rates were chosen.
_SEARCHED_WIDTH = 128

_CLAIMED = [row for row in ROWS if row.claimed]
_AGAIN = [row for row in ROWS if row.again]


def _one_update_late() -> list[Variant]:
    """Return one interface whose messages take as long as an update, with the versions of the weights that this needs."""
    waiting = row_of("backprop", "adamw")
    late, corrected = (
        row_of("delayed", "adamw", delay=1, error_feedback=feedback).rate for feedback in (False, True)
    )
    rule = RuleSettings(delay=_MICROBATCHES)

    def variant(rate: float, versions: int, *, error_feedback: bool = False) -> Variant:
        schedule = {"optimizer": "adamw", "lr": rate, "versions": versions, "error_feedback": error_feedback}
        return Variant("delayed", rule, payload={"modules": 2}, schedule=schedule)

    return [
        waiting.variant(waiting.rate),
        variant(late, 2),
        variant(corrected, 2, error_feedback=True),
        variant(late, 1),
    ]


def _at_width(variants: Sequence[Variant], width: int) -> list[Variant]:
    """Return rows with rates for another width: the rates of matrices fall as it grows (Yang et al. 2022, table 8)."""
    factor = _SEARCHED_WIDTH / width
    return [replace(v, schedule={**v.schedule, "lr": v.schedule["lr"] * factor}) for v in variants]


#: As many updates of backpropagation as make the work of 3,000 with a private block at each of three cuts: these compute seven
#: blocks where backpropagation computes four.
_SAME_COMPUTE = 5400


def _with_same_compute() -> Variant:
    """Return backpropagation with more updates, with the work that private blocks make."""
    row = row_of("backprop", "muon")
    made = row.variant(row.rate)
    return replace(
        made, schedule={**made.schedule, "steps": _SAME_COMPUTE, "eval_every": _SAME_COMPUTE // 10}
    )


_TINY = LanguageModel(
    data="shakespeare-50k", layers=4, width=16, heads=2, context=16, most_valid=500, monitor_every=5
)
_SMOKE = Schedule(20, 8, milestones=(), eval_every=10, optimizer="adamw")

_SMALL = LanguageModel(data="shakespeare")
_PENN = replace(_SMALL, data="ptb", most_valid=100_000)
_QUICK = Schedule(3000, 32, milestones=(), eval_every=300, optimizer="adamw", lr_warm_up=100, cosine=True)

# 85 million parameters and 8,192 bytes a batch; ptb is read about five times. Modules that wait keep a graph for each
# batch that is under way, so that a lag of 16 takes more memory than most cards have.
_LARGE = LanguageModel(data="ptb", tokens="bytes", layers=12, width=768, heads=12, context=512)
_FULL = replace(_QUICK, batch_size=16)


def _smoke(seed: int) -> list[Group]:
    rows = ROWS if seed == 0 else _CLAIMED
    found = [Group(_TINY, _SMOKE, chosen(rows))]
    return (
        found if seed else [*found, Group(_TINY, in_microbatches(_SMOKE, _MICROBATCHES), _one_update_late())]
    )


def _quick(seed: int) -> list[Group]:
    claimed = Group(_SMALL, _QUICK, chosen(_CLAIMED), precision="bfloat16")
    if seed:
        return [claimed]
    others = [row for row in ROWS if not row.claimed]
    return [
        claimed,
        Group(_SMALL, _QUICK, chosen(others), precision="bfloat16"),
        Group(_SMALL, _QUICK, [_with_same_compute()], precision="bfloat16"),
        Group(_PENN, _QUICK, chosen(_AGAIN), precision="bfloat16"),
        Group(_SMALL, in_microbatches(_QUICK, _MICROBATCHES), _one_update_late(), precision="bfloat16"),
    ]


def _full(seed: int) -> list[Group]:
    rows = [row for row in ROWS if row.rule is None or row.rule.delay < 16]
    width = _LARGE.width
    return [
        Group(_LARGE, _FULL, _at_width(chosen(rows), width), precision="bfloat16"),
        Group(
            *(_LARGE, in_microbatches(_FULL, _MICROBATCHES), _at_width(_one_update_late(), width)),
            precision="bfloat16",
        ),
    ]


EXPERIMENT = Experiment(
    "a language model in modules: bits per character of every method at its best rate, over lag, share and cuts",
    {"smoke": _smoke, "quick": _quick, "full": _full},
)

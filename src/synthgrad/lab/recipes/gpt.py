"""A GPT in two and in four modules: bits per character over the lag of its messages, with AdamW and with Muon.

Lags are numbers of batches, for each interface that a message crosses. Without them an update is made of one batch, so
that a message that is ``n`` batches late is ``n`` updates late. The second group makes the same updates of four
microbatches each: what is up to four microbatches late is then one update late, with two versions of the weights
(2BW) or with one (PACI).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ..training.payloads import LanguageModel
from ..training.settings import RuleSettings, Schedule
from ._experiment import Experiment, Group, Variant

__all__ = ["EXPERIMENT", "LAGS"]

#: Numbers of batches that a message takes to cross an interface; backpropagation is the same with 0.
LAGS = (1, 4, 16)

_HEAD = RuleSettings(head="tokens")


def _methods(modules: int, lags: Iterable[int], optimizer: str) -> Iterator[Variant]:
    """Yield late gradients, credit that does not wait, and the one corrected by the other, for a number of modules."""
    cuts = {"modules": modules}

    def variant(method: str, rule: RuleSettings, *, error_feedback: bool = False) -> Variant:
        schedule = {"optimizer": optimizer, "error_feedback": error_feedback}
        return Variant(method, rule, payload=cuts, schedule=schedule)

    for lag in lags:
        yield variant("delayed", RuleSettings(delay=lag))
    yield variant("delayed", RuleSettings(delay=1), error_feedback=True)
    yield variant("local_loss", _HEAD)
    for lag in lags:
        yield variant("late_correction", replace(_HEAD, delay=lag))


def _others(modules: int) -> Iterator[Variant]:
    """Yield what else gives credit at once, for a number of modules."""
    for method, rule in (("head_gradient", _HEAD), ("interlocked", _HEAD), ("cdni", RuleSettings())):
        if method != "interlocked" or modules > 2:  # with two modules it is backpropagation
            yield Variant(method, rule, payload={"modules": modules})


def _all_at_once(lags: Iterable[int], optimizers: Iterable[str], modules: Iterable[int]) -> list[Variant]:
    """Return the methods of the first group, backpropagation first."""
    found = [Variant("backprop", schedule={"optimizer": name}) for name in optimizers]
    found += [v for name in optimizers for k in modules for v in _methods(k, lags, name)]
    return found + [v for k in modules for v in _others(k)]


def _in_microbatches(schedule: Schedule, num: int = 4) -> Schedule:
    """Return a schedule of the same updates, each of several microbatches."""
    return replace(
        schedule,
        steps=num * schedule.steps,
        batch_size=schedule.batch_size // num,
        eval_every=num * schedule.eval_every,
        lr_warm_up=num * schedule.lr_warm_up,
        accumulate=num,
    )


#: One interface, whose messages take as long as an update.
_ONE_UPDATE_LATE = (
    "backprop",
    Variant("delayed", RuleSettings(delay=4), schedule={"versions": 2}),
    Variant("delayed", RuleSettings(delay=4), schedule={"versions": 2, "error_feedback": True}),
    Variant("delayed", RuleSettings(delay=4), schedule={"versions": 1}),
)

_TINY = LanguageModel(
    data="shakespeare-50k", layers=4, width=16, heads=2, context=16, most_valid=500, monitor_every=5
)
_SMOKE = Schedule(20, 8, lr=2e-3, milestones=(), eval_every=10, optimizer="adamw")

_SMALL = LanguageModel(data="shakespeare")
_QUICK = Schedule(
    3000, 32, lr=2e-3, milestones=(), eval_every=150, optimizer="adamw", lr_warm_up=100, cosine=True
)

# 85 million parameters and 8,192 bytes a batch; ptb is read about five times. Modules that wait keep a graph for each
# batch that is under way, so that a lag of 16 would take more memory than most cards have.
_LARGE = LanguageModel(data="ptb", tokens="bytes", layers=12, width=768, heads=12, context=512)
_FULL = replace(_QUICK, batch_size=16, lr=6e-4)

EXPERIMENT = Experiment(
    "a language model in modules: bits per character over lag, AdamW and Muon, updates of microbatches",
    {
        "smoke": [
            Group(_TINY, _SMOKE, _all_at_once((1, 4), ("adamw",), (2, 4))),
            Group(_TINY, _in_microbatches(_SMOKE), _ONE_UPDATE_LATE),
        ],
        "quick": [
            Group(_SMALL, _QUICK, _all_at_once(LAGS, ("adamw", "muon"), (2, 4))),
            Group(_SMALL, _in_microbatches(_QUICK), _ONE_UPDATE_LATE),
        ],
        "full": [
            Group(_LARGE, _FULL, _all_at_once((1, 4), ("adamw", "muon"), (2, 4)), precision="bfloat16"),
            Group(_LARGE, _in_microbatches(_FULL), _ONE_UPDATE_LATE, precision="bfloat16"),
        ],
    },
)

"""A GPT whose activations and messages cross wires of few bits: bits per character of every codec.

Four modules of a block each, as four stages have them, trained in one process, with the weights that stages would have. With
a delay of 0 the true gradient is backpropagation whose activations and gradients cross the same wires: what a synchronous
pipeline with a codec computes. With a delay of 2 microbatches at each interface it is one update late in the lowest module:
what stages with late gradients compute. Interlocked losses come from the next module, and may be 8 microbatches late. Learning rates are those of `gpt`::

    synthgrad run gpt_codecs --seeds 0,1,2 --threads 1 --out DIR
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..training.payloads import LanguageModel
from ..training.settings import RuleSettings, Schedule
from ._experiment import Experiment, Group, Variant
from ._gpt_rows import in_microbatches

__all__ = ["EXPERIMENT"]

_MODULES = 4
_MUON: dict[str, Any] = {"optimizer": "muon", "lr": 1.6e-2}
_CDNI: dict[str, Any] = {"optimizer": "muon", "lr": 4e-3}

#: Of a synchronous pipeline, of a local loss, of synthetic gradients, whose messages have a codec of their own, and of
#: gradients that come late.
_PIPELINE = ("bfloat16", "8bits")
_LOCAL = ("float32", "bfloat16", "8bits", "4bits", "subspace:32:8bits")
_LATE = ("float32", "8bits")
_MESSAGES = (("float32", None), ("8bits", None), ("8bits", "largest:0.0625"))


def _variant(method: str, rule: RuleSettings, schedule: dict[str, Any] = _MUON) -> Variant:
    return Variant(method, rule, payload={"modules": _MODULES}, schedule=schedule)


_VARIANTS = [
    Variant("backprop", None, payload={"modules": _MODULES}, schedule=_MUON),
    *(_variant("delayed", RuleSettings(delay=0, codec=codec)) for codec in _PIPELINE),
    *(_variant("local_loss", RuleSettings(head="tokens", blocks=0, codec=codec)) for codec in _LOCAL),
    *(
        _variant("cdni", RuleSettings(label_rate=1.0, delay=1, codec=codec, message_codec=messages), _CDNI)
        for codec, messages in _MESSAGES
    ),
    *(
        _variant("late_correction", RuleSettings(head="tokens", blocks=0, delay=4, weight=None, codec=codec))
        for codec in _LATE
    ),
]

#: Microbatches of an update, where gradients are one update late: three interfaces of two each, and some to spare.
_MICROBATCHES = 8

_ONE_UPDATE_LATE = [
    _variant(method, rule, {**_MUON, "error_feedback": True})
    for codec in _LATE
    for method, rule in (
        ("delayed", RuleSettings(delay=2, codec=codec)),
        ("interlocked", RuleSettings(head="tokens", delay=_MICROBATCHES, codec=codec)),
    )
]

_TINY = LanguageModel(
    data="shakespeare-50k", layers=4, width=32, heads=2, context=16, most_valid=500, monitor_every=5
)
_SMOKE = Schedule(20, 8, milestones=(), eval_every=10, optimizer="adamw")
_SMALL = LanguageModel(data="shakespeare")
_QUICK = Schedule(3000, 32, milestones=(), eval_every=300, optimizer="adamw", lr_warm_up=100, cosine=True)

# As large as the full tier of `gpt`, with its rates for that width.
_LARGE = LanguageModel(data="ptb", tokens="bytes", layers=12, width=768, heads=12, context=512)
_FULL = replace(_QUICK, batch_size=16)


def _at_width(variant: Variant) -> Variant:
    lr = variant.schedule["lr"] * _SMALL.width / _LARGE.width
    return replace(variant, schedule={**variant.schedule, "lr": lr})


def _groups(
    network: LanguageModel, schedule: Schedule, *, precision: str = "float32", at_width: bool = False
) -> list[Group]:
    late = in_microbatches(schedule, _MICROBATCHES)
    return [
        Group(network, made, [_at_width(v) for v in found] if at_width else found, precision=precision)
        for made, found in ((schedule, _VARIANTS), (late, _ONE_UPDATE_LATE))
    ]


EXPERIMENT = Experiment(
    "a language model over wires of few bits: bits per character by codec, beside a pipeline with the same codecs",
    {
        "smoke": _groups(_TINY, _SMOKE),
        "quick": _groups(_SMALL, _QUICK, precision="bfloat16"),
        "full": _groups(_LARGE, _FULL, precision="bfloat16", at_width=True),
    },
)

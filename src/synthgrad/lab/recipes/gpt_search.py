"""Search of settings for the rows of `gpt`: a sixth of the length, judged by validation text.

It finds the learning rate of every row, and shows what other weights of late corrections would do than the one by rule.

The seed is another than those of `gpt`::

    synthgrad run gpt_search --seeds 100 --threads 1 --out DIR

Test text is measured too, as in every run of a language model. It chooses nothing.
"""

from __future__ import annotations

from ..training.payloads import LanguageModel
from ..training.settings import Schedule
from ._experiment import Experiment, Group
from ._gpt_rows import ROWS, searched, weights

__all__ = ["EXPERIMENT"]

_TINY = LanguageModel(
    data="shakespeare-50k", layers=4, width=16, heads=2, context=16, most_valid=500, monitor_every=5
)
_SMOKE = Schedule(20, 8, milestones=(), eval_every=10, optimizer="adamw")

_SMALL = LanguageModel(data="shakespeare")
_QUICK = Schedule(500, 32, milestones=(), eval_every=250, optimizer="adamw", lr_warm_up=17, cosine=True)

_VARIANTS = [*searched(ROWS), *weights()]

EXPERIMENT = Experiment(
    "language models in modules: learning rates, and weights of late corrections, on held-out text",
    {
        "smoke": [Group(_TINY, _SMOKE, _VARIANTS)],
        "quick": [Group(_SMALL, _QUICK, _VARIANTS, precision="bfloat16")],
    },
)

"""One cut through the middle of a small GPT, method by method: what a late gradient costs, and what wins it back.

Every run has the same text, network, number of steps and learning rate. Each row says what it changes; what it
does not name is AdamW, two modules of two blocks, and no lag. A lag is a number of batches, and here of updates.
A run takes about four minutes on a core.
"""

from __future__ import annotations

from typing import Any

from ..training.payloads import LanguageModel
from ..training.settings import RuleSettings, Schedule
from ._experiment import Experiment, Group, Variant

__all__ = ["EXPERIMENT"]

_MUON: dict[str, Any] = {"optimizer": "muon"}
_NADAM: dict[str, Any] = {"optimizer": "nadam"}
_FEEDBACK: dict[str, Any] = {"error_feedback": True}
_FOUR: dict[str, Any] = {"modules": 4}


def _head(**settings: Any) -> RuleSettings:
    """Return settings of a rule whose head scores tokens."""
    return RuleSettings(head="tokens", **settings)


def _row(method: str, rule: RuleSettings | None = None, **schedule: Any) -> Variant:
    return Variant(method, rule, schedule=schedule)


_ROWS = (
    # Everything waits: the reference.
    _row("backprop"),
    _row("backprop", **_MUON),
    # The true gradient, one update late, and the same with error feedback.
    _row("delayed", RuleSettings(delay=1)),
    _row("delayed", RuleSettings(delay=1), **_FEEDBACK),
    _row("delayed", RuleSettings(delay=1), **_MUON),
    _row("delayed", RuleSettings(delay=1), **_MUON, **_FEEDBACK),
    # The true gradient, four updates late.
    _row("delayed", RuleSettings(delay=4)),
    _row("delayed", RuleSettings(delay=4), **_NADAM),
    _row("delayed", RuleSettings(delay=4), **_MUON),
    # Credit at once from a head, linear or with one private block; nothing from above.
    _row("local_loss", _head(blocks=0)),
    _row("local_loss", _head(blocks=1)),
    # The same with the private block, corrected when the true gradient comes four updates late.
    _row("late_correction", _head(delay=4, weight=0.5)),
    _row("late_correction", _head(delay=4, weight=1.0)),
    _row("late_correction", _head(delay=4, weight=0.5, recompute=True)),
    # Other credit at once: of a head and least squares, and of a linear M that sees the next tokens.
    _row("head_gradient", _head()),
    _row("cdni", RuleSettings()),
    # Four modules of one block. (With two, interlocked is backpropagation: the module above has the criterion.)
    Variant("local_loss", _head(), payload=_FOUR),
    Variant("interlocked", _head(), payload=_FOUR),
)

_NETWORK = LanguageModel(data="shakespeare", layers=4, width=128, heads=4, context=64, modules=2)
_TINY = LanguageModel(
    data="shakespeare-50k",
    layers=4,
    width=16,
    heads=2,
    context=16,
    modules=2,
    most_valid=500,
    monitor_every=5,
)

EXPERIMENT = Experiment(
    "a small GPT cut in two: late gradients, and credit that does not wait",
    {
        "smoke": [
            Group(_TINY, Schedule(20, 8, lr=2e-3, milestones=(), eval_every=10, optimizer="adamw"), _ROWS)
        ],
        "quick": [
            Group(
                _NETWORK, Schedule(1000, 32, lr=2e-3, milestones=(), eval_every=100, optimizer="adamw"), _ROWS
            )
        ],
    },
)

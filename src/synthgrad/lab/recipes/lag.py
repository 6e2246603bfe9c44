"""Test error over lag: how useful is a message that comes many steps late?

Network, cut and learning rate are those of ``bench pipeline``. The lag is simulated in one process, where it is exact; in
stages it depends on the link, up to the window.
"""

from __future__ import annotations

from ..training.settings import RuleSettings, Schedule
from ._experiment import Experiment, Group, Variant
from ._papers import feed_forward

__all__ = ["EXPERIMENT", "LAGS"]

#: Numbers of steps between a prediction and the message that corrects it, or until a delayed gradient arrives.
LAGS = (0, 1, 4, 16, 64)

_VARIANTS = (
    "backprop",
    *(Variant("cdni", RuleSettings(delay=lag)) for lag in LAGS),
    *(Variant("delayed", RuleSettings(delay=lag)) for lag in LAGS if lag),
)
_NONE = ()  # a constant learning rate, because the experiment asks how soon an error is reached
_NETWORK = feed_forward("mnist", layers=9, width=512, at=("layer4",), target_error_pct=2.0)

EXPERIMENT = Experiment(
    "test error over how many steps late the messages come, at one cut",
    {
        "smoke": [
            Group(
                feed_forward("mnist-10k", layers=4, width=32, at=("layer2",), target_error_pct=50.0),
                Schedule(40, 64, lr=1e-3, milestones=_NONE, eval_every=20),
                _VARIANTS,
            )
        ],
        "quick": [
            Group(
                _NETWORK,
                Schedule(1500, 256, lr=3e-4, milestones=_NONE, eval_every=100),
                _VARIANTS,
                precision="bfloat16",
            )
        ],
        "full": [
            Group(_NETWORK, Schedule(20_000, 256, lr=3e-4, milestones=_NONE, eval_every=500), _VARIANTS)
        ],
    },
)

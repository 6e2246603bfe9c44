"""Sparse updates: test error over the probability of an update (DNI §3.1).

There are two separate comparisons. With an equal number of updates, a run with probability ``p`` makes ``1/p`` times as
many steps. With an equal number of steps, it makes fewer updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..training.settings import Schedule
from ._experiment import Experiment, Group
from ._papers import FULL, LEARNED_TABLE, feed_forward

__all__ = ["EXPERIMENT", "METHODS", "drawn_probs"]

METHODS = ("backprop", "dni", "cdni")

_VARIANTS = ("backprop", "dni", LEARNED_TABLE)
_NUM_DRAWN = 100


def _swept(data: str, probs: Sequence[float], base: Schedule, precision: str = "float32") -> list[Group]:
    """Return a sweep over fixed probabilities.

    Args:
        data: name of the data set.
        probs: the probabilities.
        base: schedule for p = 1; smaller probabilities run with as many steps, and with as many updates.
        precision: ``float32`` or ``bfloat16``.
    """
    groups: list[Group] = []
    for prob in reversed(probs):
        payload = feed_forward(data, update_prob=prob)
        longer = replace(base, steps=round(base.steps / prob), eval_every=round(base.eval_every / prob))
        groups.append(Group(payload, longer, _VARIANTS, precision=precision))  # as many updates as with p = 1
        if prob < 1:
            groups.append(Group(payload, base, _VARIANTS, precision=precision))  # as many steps
    return groups


def _drawn(seed: int) -> list[Group]:
    """Return runs with randomly drawn probabilities, as in the paper."""
    return [
        Group(feed_forward("mnist", update_prob=prob), FULL, (_VARIANTS[k % len(_VARIANTS)],))
        for k, prob in enumerate(drawn_probs(seed))
    ]


def drawn_probs(seed: int, num: int = _NUM_DRAWN) -> list[float]:
    """Return update probabilities drawn from (0, 1]; they depend on the seed alone."""
    import torch  # imported here because the command line reads recipes without loading PyTorch

    drawn = torch.rand(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [max(1e-6, round(1 - u, 6)) for u in drawn.tolist()]


EXPERIMENT = Experiment(
    "test error over the probability of an update, at equal updates and equal steps",
    {
        "smoke": _swept("mnist-10k", (0.25, 1.0), Schedule(40, 64, lr=1e-3, eval_every=20)),
        "quick": _swept("mnist", (0.1, 0.2, 0.5, 1.0), Schedule(2500, lr=3e-4, eval_every=250), "bfloat16"),
        "full": _drawn,
    },
)

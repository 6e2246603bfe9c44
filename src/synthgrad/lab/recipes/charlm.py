"""A character language model with unrolls of several lengths, all on the same amount of data (DNI §3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..training.payloads import Characters
from ..training.settings import BoundarySettings, Schedule
from ._experiment import Experiment, Group, Variant

__all__ = ["EXPERIMENT", "METHODS"]

#: Without least squares, which fit the noise in the gradients of a text.
METHODS = ("bptt", "dni", "dni_aux")

#: A narrow ``M``: one as wide as the network takes a quarter of an unroll's time at this size, and predicts no better.
_NARROW = BoundarySettings(hidden=(32,), aux_hidden=(32,))
#: The same ``M``, which learns from one unroll in four.
_SPARSE = replace(_NARROW, observe_every=4)


def _unrolls(
    data: str,
    unrolls: Sequence[int],
    variants: Sequence[Variant | str],
    *,
    chars: int,
    batch_size: int,
    lr: float,
    width: int,
    num_points: int,
    most_valid: int | None = None,
    rule: BoundarySettings | None = None,
) -> list[Group]:
    """Return a group for each length of unroll; all see the same data, so shorter unrolls mean more updates."""
    groups: list[Group] = []
    for unroll in unrolls:
        steps = chars // (batch_size * unroll)
        groups.append(
            Group(
                Characters(data=data, width=width, unroll=unroll, most_valid=most_valid),
                Schedule(steps, batch_size, lr=lr, milestones=(), eval_every=max(1, steps // num_points)),
                variants,
                rule,
            )
        )
    return groups


EXPERIMENT = Experiment(
    "bits per character of a language model over the length of unrolls, at one budget of data (DNI, PTB)",
    {
        "smoke": _unrolls(
            "shakespeare-50k",
            (5,),
            METHODS,
            chars=8_000,
            batch_size=16,
            lr=3e-3,
            width=32,
            num_points=2,
            most_valid=2_000,
        ),
        "quick": _unrolls(
            "ptb",
            (5, 10, 20),
            ("bptt", "dni", Variant("dni", _SPARSE), "dni_aux"),
            chars=3_000_000,
            batch_size=64,
            lr=1e-3,
            width=256,
            num_points=20,
            most_valid=50_000,
            rule=_NARROW,
        ),
        # The paper's width and learning rate; 100 evaluations, at the shortest unroll every 5,000 as there.
        "full": _unrolls(
            "ptb",
            (2, 3, 4, 5, 8, 20, 40),
            METHODS,
            chars=250_000_000,
            batch_size=256,
            lr=7e-5,
            width=1024,
            num_points=100,
        ),
    },
)

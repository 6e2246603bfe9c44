"""The character language model over the length of unrolls, at one budget of data (DNI §3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .config import Schedule
from .recurrent_methods import RECURRENT_METHODS
from .sequence_config import BoundarySettings, CharRun, SequenceCell

__all__ = ["TIERS", "configs"]

TIERS = ("smoke", "quick", "full")


@dataclass(frozen=True, slots=True)
class _Tier:
    """What a tier trains, with the same number of characters for every length of unroll."""

    data: str
    unrolls: tuple[int, ...]
    chars: int
    batch_size: int
    lr: float
    width: int
    num_points: int
    most_valid: int | None
    rule: BoundarySettings
    sparse: BoundarySettings | None = None  # for another run of `dni`
    precision: str = "float32"


#: An ``M`` as wide as the network takes a quarter of an unroll's time at this size; what it says of characters is
#: little, and a narrow one says it too.
_NARROW = BoundarySettings(hidden=(32,), aux_hidden=(32,))
#: And learns it from one unroll in four.
_SPARSE = replace(_NARROW, observe_every=4)

_TIERS = {
    "smoke": _Tier("shakespeare-50k", (5,), 8_000, 16, 3e-3, 32, 2, 2_000, BoundarySettings()),
    "quick": _Tier("ptb", (5, 10, 20), 3_000_000, 64, 1e-3, 256, 20, 50_000, _NARROW, _SPARSE),
    # The paper's size and rate; validation every 5,000 unrolls of the shortest kind, as it did.
    "full": _Tier(
        "ptb", (2, 3, 4, 5, 8, 20, 40), 250_000_000, 256, 7e-5, 1024, 100, None, BoundarySettings()
    ),
}


#: Not by least squares: of a text most of what comes back is noise, which they follow.
_METHODS = tuple(m.name for m in RECURRENT_METHODS.values() if not m.solves)


def configs(tier: str, seeds: Sequence[int], device: str, data_dir: str | None) -> list[CharRun]:
    """Return the runs, seed by seed; all have the same data, so shorter unrolls make more updates."""
    size = _TIERS[tier]
    return [
        _run(size, rule, tier, method, seed, unroll, device, data_dir)
        for seed in seeds
        for unroll in size.unrolls
        for method in _METHODS
        for rule in (size.rule, size.sparse if method == "dni" else None)
        if rule is not None
    ]


def _run(
    size: _Tier,
    rule: BoundarySettings,
    tier: str,
    method: str,
    seed: int,
    unroll: int,
    device: str,
    data_dir: str | None,
) -> CharRun:
    steps = size.chars // (size.batch_size * unroll)
    return CharRun(
        "charlm",
        tier,
        method,
        seed,
        SequenceCell(size.data, width=size.width, unroll=unroll),
        Schedule(
            steps, size.batch_size, lr=size.lr, milestones=(), eval_every=max(1, steps // size.num_points)
        ),
        rule,
        device,
        size.precision,
        data_dir,
        most_valid=size.most_valid,
    )

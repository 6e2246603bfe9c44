"""Which settings make an LSTM copy longest: of the rule between unrolls, of clipping, of the rate, of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..tasks.episodes import SPREAD
from . import copying
from .sequence_config import BoundarySettings, CopyRun

__all__ = ["TIERS", "configs"]

TIERS = ("smoke", "quick")

_STEPS = {"smoke": 30, "quick": 5_000}

_CHOSEN = copying.CHOSEN
_FREE = replace(_CHOSEN, max_norm=None)


@dataclass(frozen=True, slots=True)
class _Variant:
    method: str
    rule: BoundarySettings = _CHOSEN
    rate: float = 1.0  # times the tier's
    spread: int = SPREAD


_VARIANTS = (
    _Variant("bptt"),
    _Variant("bptt", _FREE),
    _Variant("bptt", rate=3.0),
    _Variant("bptt", _FREE, rate=3.0),
    _Variant("bptt", spread=1),
    _Variant("dni"),
    _Variant("dni", _FREE),
    _Variant("dni", rate=3.0),
    _Variant("dni", spread=1),
    _Variant("dni", replace(_CHOSEN, alpha=1.0)),
    _Variant("dni", replace(_CHOSEN, alpha=0.1)),
    _Variant("dni", replace(_CHOSEN, lr_factor=0.3)),
    _Variant("dni", replace(_CHOSEN, hidden=None)),
    _Variant("dni", replace(_CHOSEN, hidden=None, norm=False)),
    _Variant("dni_aux"),
    _Variant("dni_aux", replace(_CHOSEN, aux_weight=0.1)),
    _Variant("dni_aux", replace(_CHOSEN, aux_hidden=())),
)


def configs(tier: str, seeds: Sequence[int], device: str, data_dir: str | None) -> list[CopyRun]:
    """Return the variants on Copy with the shortest unrolls, over half the quick tier's episodes."""
    bases = [copying.copy(tier, (seed,), device, data_dir)[0] for seed in seeds]
    return [
        replace(
            base,
            experiment="copy_search",
            method=v.method,
            rule=v.rule,
            schedule=replace(base.schedule, steps=_STEPS[tier], lr=base.schedule.lr * v.rate),
            spread=v.spread,
        )
        for base in bases
        for v in _VARIANTS
    ]

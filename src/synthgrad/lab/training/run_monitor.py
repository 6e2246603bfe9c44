"""A monitor whose measurements survive a resume: what was measured since the last point of the curve is in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core import Monitor, Quality

__all__ = ["RunMonitor", "brief_quality", "pack", "unpack"]


def pack(rows: Sequence[Tensor]) -> Tensor | None:
    """Return tensors of one shape as one, which is quicker to save; None for none."""
    return torch.stack(list(rows)) if rows else None


def unpack(packed: Tensor | None) -> list[Tensor]:
    """Return what `pack` was given."""
    return [] if packed is None else list(packed.unbind())


def brief_quality(found: Mapping[str, Quality]) -> dict[str, dict[str, float]]:
    """Return what tells the quality of an interface between unrolls, whose messages have no norms to compare."""
    names = ("cosine", "relative_error", "sign_agreement")
    return {
        interface: {name: getattr(quality, name) for name in names} for interface, quality in found.items()
    }


class RunMonitor(Monitor):
    """A `Monitor` with a state."""

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted, and what was measured since it was last collected."""
        return {"seen": dict(self.seen), "kept": {k: pack(rows) for k, rows in self._kept.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting and measuring from there."""
        self.seen = dict(state["seen"])
        self._kept = {k: unpack(rows) for k, rows in state["kept"].items()}

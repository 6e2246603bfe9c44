"""A monitor whose measurements survive a resume, because they are part of snapshots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core import Monitor, Quality

__all__ = ["RunMonitor", "brief_quality", "pack", "unpack"]


def pack(rows: Sequence[Tensor]) -> Tensor | None:
    """Stack tensors of the same shape into one, which is quicker to save; None if there are none."""
    return torch.stack(list(rows)) if rows else None


def unpack(packed: Tensor | None) -> list[Tensor]:
    """Return the tensors that `pack` stacked."""
    return [] if packed is None else list(packed.unbind())


def brief_quality(found: Mapping[str, Quality]) -> dict[str, dict[str, float]]:
    """Return the quality of interfaces between unrolls for the record; their messages have no norms to compare."""
    names = ("cosine", "relative_error", "sign_agreement")
    return {
        interface: {name: getattr(quality, name) for name in names} for interface, quality in found.items()
    }


class RunMonitor(Monitor):
    """A `Monitor` whose state can be saved."""

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, and the measurements since they were last collected."""
        return {"seen": dict(self.seen), "kept": {k: pack(rows) for k, rows in self._kept.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.seen = dict(state["seen"])
        self._kept = {k: unpack(rows) for k, rows in state["kept"].items()}

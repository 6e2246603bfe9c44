"""What runs must share to stand side by side."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..records import Record
from .fields import key, part
from .labels import OF_METHOD

__all__ = ["setting_key", "times_compare"]

#: Settings of a configuration whose runs stand apart.
_APART = ("lr", "hold_out", "precision", "compiled", "augment", "symbols", "threshold_bits")


def setting_key(record: Record, but: Collection[str] = ()) -> str:
    """Return what runs must share to stand side by side, whatever their number of steps, as a string.

    Args:
        record: of a training.
        but: names of the cell in which they may differ nonetheless.
    """
    cell = {k: v for k, v in part(record, "cell").items() if k not in OF_METHOD and k not in but}
    config, env = part(record, "config"), part(record, "env")
    shared = [record.get(k) for k in ("experiment", "tier", "batch_size")]
    apart = [config.get(k) for k in _APART]
    return key([shared, cell, apart, env.get("device")])


def times_compare(records: Iterable[Record]) -> bool:
    """May the times of these runs be compared? Their errors may be, whatever their threads and neighbours."""
    envs = [part(r, "env") for r in records]
    return len({key([e.get("threads"), e.get("jobs", 1)]) for e in envs}) == 1

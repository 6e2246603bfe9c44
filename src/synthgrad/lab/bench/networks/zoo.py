"""The zoo: networks of the kinds that people bring, by name."""

from __future__ import annotations

from .entry import Entry
from .hub import HUB
from .own import OWN

__all__ = ["ZOO"]

ZOO: dict[str, Entry] = {entry.name: entry for entry in (*OWN, *HUB)}

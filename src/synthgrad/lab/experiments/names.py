"""Names of files and folders that belong to one run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ..records import identity

__all__ = ["run_name"]


def run_name(record: Mapping[str, Any]) -> str:
    """Return a name for a run: readable, and another one for runs that differ in any setting."""
    short = hashlib.sha1(identity(record).encode(), usedforsecurity=False).hexdigest()[:6]
    return f"{record['method']}-seed{record['seed']}-{short}"

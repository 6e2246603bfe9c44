"""No credit at all: the baseline in which only the top module learns (DNI §3.1, "No Bprop")."""

from __future__ import annotations

from torch import Tensor

from ..core import Credit, Info, Rule

__all__ = ["NoBackprop"]


class NoBackprop(Rule):
    """The module below gets nothing to learn from and keeps its weights."""

    listens = False

    def credit(self, h: Tensor, info: Info) -> Credit:
        return Credit(None)

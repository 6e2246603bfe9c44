"""λ-returns over a window of unrolls: what came back in place of what the rule expected (BP(λ), Pemberton 2024).

The gradient that the rule learns at the start of unroll ``k`` is linear in what its final state receives:
``G_k = ∂L_k/∂s_k + J_kᵀ α [(1 - λ) δ̂_{k+1} + λ G_{k+1}]``. All unrolls of a window have the same weights, so
this is the forward view, exact; at the end of the window there is nothing but ``δ̂``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Info
from .boundary import Boundary, Ended, Rows

__all__ = ["Unroll", "returns"]


@dataclass(slots=True)
class Unroll:
    """An unroll whose graph is kept.

    Attributes:
        done: its loss, with the rule's credit in it, its final state and that credit.
        leaf: ``(B, F)``, the flat state at its start, whose gradient is asked for; None where nobody learns.
        rows: the sequences that the rule learns from at its start.
        info: what is known there.
        ended: the sequences that are over at its end.
    """

    done: Ended
    leaf: Tensor | None
    rows: Rows
    info: Info
    ended: Rows


def returns(window: Sequence[Unroll], boundary: Boundary, mix: float) -> Iterator[tuple[Unroll, Tensor]]:
    """Yield the unrolls at whose start the rule learns, the last first, each with its λ-return.

    Args:
        window: the unrolls, in order. Their graphs stay.
        boundary: between them.
        mix: ``λ``.

    Yields:
        Unroll and gradient ``(B, F)`` in per-example units.
    """
    later: Tensor | None = None  # the return of the unroll after
    same: Rows = True  # the sequences that go on into it
    for unroll in reversed(window):
        if unroll.leaf is None or unroll.rows is False:
            later = None
            continue
        divisor = boundary.units.divisor(unroll.leaf)
        outputs, seeds = [unroll.done.loss], [torch.ones_like(unroll.done.loss)]
        state, delta = unroll.done.state, unroll.done.delta
        if mix and later is not None and state is not None:
            # δ̂ is in the loss already: what is left is its difference to the return.
            more = later if delta is None else later - delta
            for goes_on in (same, _negated(unroll.ended)):
                more = more if goes_on is True else torch.where(torch.as_tensor(goes_on)[:, None], more, 0)
            outputs.append(state)
            seeds.append(more * (boundary.alpha * mix / divisor))
        (gradient,) = torch.autograd.grad(outputs, [unroll.leaf], seeds, retain_graph=True, allow_unused=True)
        later = torch.zeros_like(unroll.leaf) if gradient is None else gradient * divisor
        same = unroll.rows
        yield unroll, later


def _negated(rows: Rows) -> Rows:
    return not rows if isinstance(rows, bool) else ~rows

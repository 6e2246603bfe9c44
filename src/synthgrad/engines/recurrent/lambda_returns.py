"""λ-returns over a window of unrolls: better targets for the rule than one-step returns.

The method is BP(λ) (Pemberton 2024). The gradient that the rule learns from at the start of unroll ``k`` is
linear in the gradient of its final state: ``G_k = ∂L_k/∂s_k + J_kᵀ α [(1 - λ) δ̂_{k+1} + λ G_{k+1}]``. All
unrolls of a window have the same weights, so this forward view is exact. At the end of the window there is
only ``δ̂``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .boundary import Boundary, SequenceMask, UnrollEnd, UnrollStart

__all__ = ["RetainedUnroll", "lambda_returns"]


@dataclass(slots=True)
class RetainedUnroll:
    """An unroll whose graph is kept.

    Attributes:
        start: the start of the unroll.
        end: its loss, with the rule's credit in it, its final state and that credit.
        ended: the sequences that end with it.
    """

    start: UnrollStart
    end: UnrollEnd
    ended: SequenceMask


def lambda_returns(
    window: Sequence[RetainedUnroll], boundary: Boundary, mix: float
) -> Iterator[tuple[RetainedUnroll, Tensor]]:
    """Yield the unrolls at whose start the rule learns, the last first, each with its λ-return.

    Args:
        window: the unrolls, in order. Their graphs are kept.
        boundary: the boundary between them.
        mix: ``λ``.

    Yields:
        The unroll, and the gradient ``(B, F)`` in per-example units.
    """
    later: Tensor | None = None  # the return of the following unroll
    same: SequenceMask = True  # the sequences that continue into it
    for unroll in reversed(window):
        flight = unroll.start.flight
        if flight is None or unroll.start.rows is False:
            later = None
            continue
        leaf = flight.fed
        assert leaf is not None
        outputs, seeds = [unroll.end.loss], [torch.ones_like(unroll.end.loss)]
        state, delta = unroll.end.state, unroll.end.delta
        if mix and later is not None and state is not None:
            # The loss contains δ̂ already, so only its difference to the return is added.
            more = later if delta is None else later - delta
            for goes_on in (same, _negated(unroll.ended)):
                more = more if goes_on is True else torch.where(torch.as_tensor(goes_on)[:, None], more, 0)
            outputs.append(state)
            seeds.append(boundary.units.to_criterion(more, boundary.alpha * mix))
        (gradient,) = torch.autograd.grad(outputs, [leaf], seeds, retain_graph=True, allow_unused=True)
        later = torch.zeros_like(leaf) if gradient is None else boundary.units.to_example(gradient)
        same = unroll.start.rows
        yield unroll, later


def _negated(rows: SequenceMask) -> SequenceMask:
    return not rows if isinstance(rows, bool) else ~rows

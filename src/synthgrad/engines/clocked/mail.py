"""A message on its way from one node to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from ...core import Credit, Info

__all__ = ["Sent", "pack_sent", "unpack_sent"]


@dataclass(slots=True, eq=False)
class Sent:
    """A message, or the state that a node hands on to its next unroll.

    Attributes:
        name: of the interface.
        h: ``(B, ...)``, what receivers read: a leaf whose gradient becomes the message back; no leaf where nobody
            listens to that; attached to its sender's graph where the edge is not cut.
        info: what was known when it was sent.
        step: in which it was sent.
        missing: reads whose gradient has yet to come back; 0 where nobody listens.
        read: reads so far.
        credit: what the rule gave.
        version: of the rule's parameters at that time.
    """

    name: str
    h: Tensor
    info: Info
    step: int
    missing: int = 0
    read: int = 0
    credit: Credit | None = None
    version: int = 0


def pack_sent(sent: Sent, *, lost: bool = False) -> dict[str, Any]:
    """Return a message as a plain container of tensors; graphs are left out.

    Args:
        sent: the message.
        lost: its gradient cannot be completed any more: it can still be read, and is not learned from.
    """
    grad = sent.h.grad if sent.h.is_leaf else None
    return {
        "name": sent.name,
        "h": sent.h.detach(),
        "grad": None if lost or grad is None else grad.clone(),
        "info": {f.name: getattr(sent.info, f.name) for f in fields(sent.info)},
        "step": sent.step,
        "missing": 0 if lost else sent.missing,
        "read": sent.read,
        "delta": None if sent.credit is None else sent.credit.delta,
        "credited": sent.credit is not None,
    }


def unpack_sent(saved: Mapping[str, Any]) -> Sent:
    """Return the message that `pack_sent` was given; the rule's own prediction has to be computed again."""
    sent = Sent(
        saved["name"],
        saved["h"].clone().requires_grad_(saved["missing"] > 0),
        Info(**saved["info"]),
        saved["step"],
        saved["missing"],
        saved["read"],
        Credit(saved["delta"]) if saved["credited"] else None,
        version=-1,
    )
    sent.h.grad = saved["grad"]
    return sent

"""What is on its way at an interface: an activation that has gone up, until its message has come down and been used."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from .rule import Credit, Info, Message

__all__ = ["Batch", "InFlight", "Release"]

#: Hands a module what it has waited for: the gradient of ``h``, in the criterion's units, None if there is none that it
#: could learn from; and the message, whose loss and output error it sends on.
Release = Callable[["Tensor | None", Message], None]


@dataclass(slots=True)
class Batch:
    """A batch on its way through a network.

    Attributes:
        info: what is known of it.
        target: as the criterion wants it.
        entered: the step in which it entered.
        shares: of its examples in the criterion, ``(B,)``, where tokens are counted, see `Units`; else None.
    """

    info: Info
    target: Any = None
    entered: int = 0
    shares: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain containers of tensors."""
        info = {f.name: getattr(self.info, f.name) for f in fields(self.info)}
        return {"info": info, "target": self.target, "entered": self.entered, "shares": self.shares}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Batch:
        """Return what `state_dict` was made of."""
        return cls(Info(**state["info"]), state["target"], state["entered"], state.get("shares"))


@dataclass(slots=True, eq=False)
class InFlight:
    """A message that has crossed an interface, and all that is kept of it until its rule has learned from the answer.

    Attributes:
        name: of the interface.
        batch: the batch that it is of.
        h: the activation, ``(B, ...)``, detached.
        credit: the rule's answer, if it was asked; ``pending`` is emptied when it is outdated.
        version: of the rule's parameters when it was asked: what it left pending is used only while they are the same.
        fed: what the modules above are fed with: a leaf, whose gradient becomes the message, where somebody wants that.
        missing: readers above that have yet to add their part to the gradient of ``fed``.
        reads: how often it has been read so far, where that differs from one to the next.
        message: the answer, once it has come.
        due: the step in which the rule is to observe it.
        release: hands the answer to the module below, if that has waited for it; None if it has not.
        finite: can be learned from, as far as is known.
        made: how many updates the module below had made when it crossed, where the engine counts them.
        crossed_at: when it crossed, by the monotonic clock; after a resume, when it was loaded.
    """

    name: str
    batch: Batch
    h: Tensor
    credit: Credit | None = None
    version: int = -1
    fed: Tensor | None = None
    missing: int = 0
    reads: int = 0
    message: Message | None = None
    due: int = 0
    release: Release | None = None
    finite: bool = True
    made: int = 0
    crossed_at: float = field(default_factory=time.monotonic)

    @property
    def info(self) -> Info:
        """What was known when it crossed."""
        return self.batch.info

    @property
    def waits(self) -> bool:
        """Does the module below wait for the answer?"""
        return self.release is not None

    def of_rows(self, rows: Tensor) -> InFlight:
        """Return what has crossed of some rows of the batch, for an answer that is of these rows alone.

        Args:
            rows: ``(n,)`` int64, on any device.
        """
        rows, num_rows, info = rows.to(self.h.device), len(self.h), self.info

        def some(t: Tensor | None) -> Tensor | None:
            if t is None or not t.ndim or len(t) != num_rows:
                return t
            return t[rows.to(t.device)]

        chosen = replace(
            info,
            context=some(info.context),
            ids=some(info.ids),
            inputs=some(info.inputs),
            receiver=some(info.receiver),
        )
        batch = Batch(chosen, entered=self.batch.entered, shares=some(self.batch.shares))
        credit = self.credit
        if credit is not None:
            credit = replace(
                credit, delta=some(credit.delta), value=some(credit.value), pending=(), loss=None
            )
        return replace(self, batch=batch, h=self.h[rows], credit=credit, fed=None, message=None)

    def settle(self) -> None:
        """Drop the rule's own prediction, which is outdated, or must be made anew after a resume too."""
        if self.credit is not None:
            self.credit.pending = ()

    def state_dict(self) -> dict[str, Any]:
        """Return it as plain containers of tensors. Graphs are left out: a prediction is made anew after a resume."""
        credit, message, fed = self.credit, self.message, self.fed
        part = fed.grad if fed is not None and fed.is_leaf else None
        return {
            **self.batch.state_dict(),
            "name": self.name,
            "h": self.h.detach(),
            "delta": None if credit is None else credit.delta,
            "credited": credit is not None,
            "final": credit is not None and credit.final,
            "part": None if part is None else part.clone(),
            # What a wire has made of ``h``; without a wire it is ``h`` itself.
            "fed": None if fed is None or torch.equal(fed, self.h) else fed.detach(),
            "missing": self.missing,
            "reads": self.reads,
            "gradient": None if message is None else message.gradient,
            "loss": None if message is None else message.loss,
            "output_error": None if message is None else message.output_error,
            "due": self.due,
            "finite": self.finite,
            "made": self.made,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> InFlight:
        """Return what `state_dict` was made of."""
        gradient = state["gradient"]
        found = cls(
            name=state["name"],
            batch=Batch.from_state(state),
            h=state["h"],
            credit=Credit(state["delta"], final=state.get("final", False)) if state["credited"] else None,
            missing=state.get("missing", 0),
            reads=state.get("reads", 0),
            message=None if gradient is None else Message(gradient, state["loss"], state.get("output_error")),
            due=state["due"],
            finite=state["finite"],
            made=state.get("made", 0),
        )
        came = state.get("fed")
        if found.missing or came is not None:
            fed = (found.h if came is None else came).clone().requires_grad_(bool(found.missing))
            fed.grad, found.fed = state["part"], fed
        return found

"""The boundary between two unrolls of a recurrent network, where truncated BPTT loses credit (DNI §2.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...core import ConfigError, Info, Message, Monitor, Rule, ShapeError, Site
from ...core.cut import PlainCrossing
from ...core.given import instance_of
from ...core.in_flight import Batch, InFlight
from ...core.instruments import Instruments
from ...core.interface import Frame, Interface
from ...core.port import Port, refuse_second_messages
from ...core.state import StateLayout
from ...core.units import LossScale, Reduction, Units
from ...rules.future_gradient import FutureGradient
from ..checks import refuse_output_error

__all__ = ["Boundary", "SequenceMask", "UnrollEnd", "UnrollStart"]

#: A choice of sequences: True for all, False for none, or a bool mask ``(B,)``.
SequenceMask = bool | Tensor

_NAME = "state"


class _Inject(torch.autograd.Function):
    """``inject(loss, state, delta)`` returns the loss.

    Its backward pass also gives ``delta`` to the state.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, state: Tensor, delta: Tensor) -> Tensor:
        ctx.save_for_backward(delta)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (delta,) = ctx.saved_tensors
        return grad, delta * grad, None  # if the loss is scaled, so is the injected credit


@dataclass(slots=True)
class UnrollStart:
    """The start of an unroll.

    Attributes:
        state: the state that the network continues from.
        flight: the state as a message that the rule can learn about, fed as a leaf ``(B, F)``; None if the
            rule does not learn at this start.
        rows: the sequences that the rule learns from, which are those that are not fresh.
    """

    state: Any
    flight: InFlight | None = None
    rows: SequenceMask = False


@dataclass(slots=True)
class UnrollEnd:
    """The end of an unroll.

    Attributes:
        loss: a scalar: the unroll's loss, whose backward pass also gives rule and final state their
            gradients.
        state: ``(B, F)``, the final state, attached; None if no credit was asked for.
        delta: ``(B, F)``, the rule's credit for it in per-example units, detached; zero for sequences that
            have ended.
    """

    loss: Tensor
    state: Tensor | None = None
    delta: Tensor | None = None


def _batch_dim(state: Any, given: int | None) -> int:
    """Return the batch dimension of a state.

    Raises:
        ConfigError: if it was not given, and the state may be ``(layers, B, H)`` or ``(B, T, H)``.
    """
    if given is not None:
        return given
    for part in pytree.tree_leaves(state):
        if isinstance(part, Tensor) and part.ndim == 3:
            raise ConfigError(
                f"the state has a part of shape {tuple(part.shape)}, of which dimension 0 or 1 may be the batch; say "
                "batch_dim=1 for the (layers, B, H) of nn.LSTM and nn.GRU, or batch_dim=0 for (B, ...)"
            )
    return 0


class Boundary(nn.Module):
    """Carries credit past the truncation boundary of BPTT, with two calls per unroll in an ordinary loop.

    At the end of an unroll the state ``s`` receives ``α · δ̂``, the credit of the rule, as if the future had
    been unrolled. At the start of the next unroll the rule learns from the gradient of the same state: that
    of the unroll's losses and of the credit at *its* end. This is a bootstrapped estimate of an unlimited
    horizon (DNI §2.2). One rule serves all boundaries.

    ``start`` and ``end`` only add to the autograd graph, so one ``loss.backward()`` trains network and rule.
    Give ``boundary.parameters()`` to the optimizer too. In ``eval()`` the boundary only detaches the state.

    Args:
        rule: the pattern of the rule, such as ``SyntheticGradient((256,), norm=False)``; `NoBackprop` gives
            plain truncated BPTT. The rule sees the state as ``(B, F)``, its parts side by side.
        state: an example: a tensor or a nest of tensors, such as the ``(h, c)`` of an ``nn.LSTM``.
        batch_dim: the batch dimension of the state: 1 for ``nn.LSTM`` and ``nn.GRU``, 0 for cells. By default
            0; it must be given for a state with three dimensions.
        alpha: the factor ``α`` of the injected credit (0.1 in the paper, as recalled). The rule's targets
            contain it.
        future: the auxiliary task; `end` then needs the features that it reads.
        reduction: how the criterion reduces over sequences: ``"mean"`` if its loss is the sum over the steps
            of an unroll and the mean over the batch; otherwise a callable that takes the flat state and
            returns the divisor, such as ``lambda s: len(s) * T`` for a mean over both. Where some steps have no label
            (ragged sequences), let the criterion sum over the labels that there are, and divide by the batch size.
        loss_scale: a callable that returns the factor by which the loss is multiplied before ``backward``.
        observe_every: the rule learns at the start of one in this many unrolls, and gives credit at the end
            of each. Most of a rule's cost is its learning.

    Attributes:
        rule: the boundary's copy of the rule.
        layout: the conversion between the state and its flat form.
        instruments: the guard, monitor and timeline.
        step: the number of the present unroll, from 0; rules see it as ``info.step``. It is part of the
            ``state_dict``.

    Raises:
        ShapeError: if the example is not a state.
        ConfigError: if ``alpha`` is not a finite number from 0, ``observe_every`` is below 1, the rule makes modules
            wait, sends ahead or corrects its credit, or tokens are counted.
    """

    def __init__(
        self,
        rule: Rule,
        state: Any,
        *,
        batch_dim: int | None = None,
        alpha: float = 0.1,
        future: FutureGradient | None = None,
        reduction: Reduction = "mean",
        loss_scale: LossScale | None = None,
        observe_every: int = 1,
    ) -> None:
        super().__init__()
        if not math.isfinite(alpha) or alpha < 0:
            raise ConfigError(f"alpha={alpha}: expected a finite number, 0 or more, such as 0.1")
        if isinstance(observe_every, bool) or observe_every < 1:
            raise ConfigError(f"observe_every={observe_every!r}: expected a number of unrolls, at least 1")
        instance_of(Rule, rule, "rule", "synthgrad.SyntheticGradient(...)")
        refuse_output_error(
            rule, _NAME, "a boundary lies between two unrolls, which have outputs of their own"
        )
        refuse_second_messages(rule, _NAME)
        if rule.waits:
            raise ConfigError(
                f"rule {type(rule).__name__} has the module below wait for its true message, but the graph of an "
                "unroll is gone when the message arrives; make unrolls longer, or use another rule"
            )
        self.layout = StateLayout(state, _batch_dim(state, batch_dim))
        flat = self.layout.pack(state)
        self.rule = rule.bind(Site(_NAME, tuple(flat.shape), flat.dtype, flat.device, self))
        if future is not None and future.state_features != self.layout.num_features:
            raise ConfigError(
                f"the auxiliary head foresees {future.state_features} numbers, expected the "
                f"{self.layout.num_features} of the state; build it with state_features={self.layout.num_features}"
            )
        self.future = None if future is None else future.to(flat.device, flat.dtype)
        self.alpha = alpha
        self.units = Units(reduction, loss_scale)
        self.units.refuse_tokens(
            "the message about a state is of all unrolls to come, each with labels of its own"
        )
        self._unscaled = Units(reduction)
        self.observe_every = observe_every
        self.instruments = Instruments()
        self._port = Port(self.rule, self.units, self.instruments)
        self.step = 0
        self._batch_size: int | None = None

    def get_extra_state(self) -> dict[str, int]:
        """Return the number of the present unroll."""
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Set the number of the present unroll."""
        self.step = int(state["step"])

    @property
    def monitor(self) -> Monitor | None:
        """Compares synthetic gradients with the gradients that arrive; None to measure nothing."""
        return self.instruments.monitor

    @monitor.setter
    def monitor(self, monitor: Monitor | None) -> None:
        self.instruments.monitor = monitor

    @property
    def learns(self) -> bool:
        """Whether the rule learns from gradients."""
        return self.training and self.rule.listens and torch.is_grad_enabled()

    @property
    def _due(self) -> bool:
        """Whether the rule learns at the start of the present unroll."""
        return self.learns and self.step % self.observe_every == 0

    def start(self, state: Any, *, fresh: SequenceMask = False, context: Tensor | None = None) -> Any:
        """Begin an unroll: return the state that the network continues from, detached from the unroll before.

        Args:
            state: the final state of the last unroll, or an initial state.
            fresh: the sequences that start from an initial state, ``(B,)`` bool or one for all. The rule
                learns nothing from these, since it is never asked for the credit of an initial state.
            context: the context of the rule, ``(B,)`` or ``(B, C)``.

        Raises:
            ShapeError: if the state or a mask has the wrong shape.
        """
        flat, keep = self._cut(state, fresh)
        if not self._due or keep is False:
            return self.layout.unpack(flat)
        info = Info(context=context, step=self.step)
        if keep is True:
            return self.layout.unpack(self._crossed(flat.requires_grad_(), info, flat))
        rows = keep.nonzero().squeeze(1)
        if not len(rows):
            return self.layout.unpack(flat)
        info.context = None if context is None else context[rows]
        crossed = self._crossed(flat[rows].requires_grad_(), info, flat)
        return self.layout.unpack(flat.index_copy(0, rows, crossed))

    def start_unroll(
        self, state: Any, *, fresh: SequenceMask = False, context: Tensor | None = None
    ) -> UnrollStart:
        """Begin an unroll in an engine that computes the gradient of the state itself.

        The engine passes that gradient to `observe`.

        Args:
            state: the final state of the last unroll, or an initial state.
            fresh: the sequences that start from an initial state, ``(B,)`` bool or one for all.
            context: the context of the rule, ``(B,)`` or ``(B, C)``.

        Raises:
            ShapeError: if the state or a mask has the wrong shape.
        """
        flat, keep = self._cut(state, fresh)
        if not self._due:
            return UnrollStart(self.layout.unpack(flat))
        batch = Batch(Info(context=context, step=self.step), entered=self.step - 1)
        # Detached once more, so that the leaf which collects the gradient is another tensor than the message.
        flight = InFlight(_NAME, batch, flat, fed=flat.detach().requires_grad_())
        assert flight.fed is not None
        return UnrollStart(self.layout.unpack(flight.fed), flight, keep)

    def end(
        self,
        loss: Tensor,
        state: Any,
        *,
        features: Tensor | None = None,
        ended: SequenceMask = False,
        context: Tensor | None = None,
    ) -> Tensor:
        """End an unroll: return its loss, whose backward pass also gives the final state its credit.

        The value of the loss does not change.

        Args:
            loss: a scalar, reduced over sequences as `reduction` says.
            state: the state that the network returned, attached.
            features: ``(B, ..., H)`` from inside the unroll, for the auxiliary task.
            ended: the sequences that have ended, ``(B,)`` bool or one for all: credit never crosses the end
                of an episode.
            context: the context of the rule, ``(B,)`` or ``(B, C)``.

        Raises:
            ShapeError: if a shape is wrong, or the batch has another size than at the start.
            ConfigError: if there is an auxiliary task and no features for it.
        """
        return self.end_unroll(loss, state, features=features, ended=ended, context=context).loss

    def end_unroll(
        self,
        loss: Tensor,
        state: Any,
        *,
        features: Tensor | None = None,
        ended: SequenceMask = False,
        context: Tensor | None = None,
    ) -> UnrollEnd:
        """Do what `end` does, and return the credit with the loss, for engines."""
        if not self.training or not torch.is_grad_enabled():
            return UnrollEnd(loss)
        if loss.ndim:
            raise ShapeError(f"the loss has shape {tuple(loss.shape)}, expected a scalar; reduce it")
        self.layout.check(state, "the state at the end of an unroll", self._batch_size)
        if self.future is not None and features is None:
            raise ConfigError("an auxiliary task is set, but no features are given; pass features=… to end")
        goes_on = self._complement(ended, "ended")
        self.step += 1
        if goes_on is False and self.future is None:
            return UnrollEnd(loss)
        flat = self.layout.pack(state)
        delta, own = (None, None) if goes_on is False else self._credit(flat, goes_on, context)
        if delta is not None:
            # Without the loss scale: the backward pass of the scaled loss scales the injected credit too.
            loss = _Inject.apply(loss, flat, self._unscaled.to_criterion(delta, self.alpha))
        # The terms below add gradients, but leave the value of the loss as it is.
        if own is not None:
            loss = loss + (own - own.detach())
        if self.future is not None and features is not None:
            # Detached below: the auxiliary head learns to predict the credit, and must not change it.
            target = torch.zeros_like(flat) if delta is None else delta
            extra = self.future.loss(features, target.detach()) * (len(flat) / self.units.divisor(flat))
            loss = loss + (extra - extra.detach())
        return UnrollEnd(loss, flat, delta)

    def observe(self, start: UnrollStart, gradient: Tensor) -> None:
        """Let the rule learn from the gradient of an unroll's initial state, in engines that compute it.

        Args:
            start: the start of the unroll.
            gradient: ``(B, F)``, in per-example units, detached.

        Raises:
            DivergedError: if the gradient is not finite and there is a guard.
        """
        flight, rows = start.flight, start.rows
        if flight is None or rows is False or not self.learns:
            return
        flight.fed = None
        if isinstance(rows, Tensor):
            info = flight.info
            kept = None if info.context is None else info.context[rows]
            batch = Batch(Info(context=kept, step=info.step), entered=flight.batch.entered)
            flight, gradient = InFlight(_NAME, batch, flight.h[rows]), gradient[rows]
        if not len(flight.h):
            return
        flight.credit, flight.version = self.rule.credit(flight.h, flight.info), self.step
        self._port.receive(flight, Message(gradient))
        self._port.observe(flight, self.step)

    def _cut(self, state: Any, fresh: SequenceMask) -> tuple[Tensor, SequenceMask]:
        """Return the flat state, cut from the unroll before, and the sequences that continue from that unroll."""
        self.layout.check(state, "the state at the start of an unroll")
        flat = self.layout.pack(state).detach()  # the truncation: no gradient flows into the unroll before
        self._batch_size = flat.shape[0]
        return flat, self._complement(fresh, "fresh")

    def _credit(
        self, flat: Tensor, goes_on: SequenceMask, context: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the rule's credit for the final state, and the rule's own loss.

        The credit is zero for sequences that have ended.
        """
        info = Info(context=context, step=self.step - 1)
        h = flat.detach()  # the rule's own loss must not reach the network
        credit = self._port.credit(h.float() if h.dtype == torch.float16 else h, info, self.step - 1)
        delta = None if credit.delta is None else credit.delta.to(h.dtype)
        if delta is not None and goes_on is not True:
            delta = torch.where(torch.as_tensor(goes_on)[:, None], delta, 0)
        return delta, credit.loss

    def _crossed(self, h: Tensor, info: Info, flat: Tensor) -> Tensor:
        """Return ``h`` as a tensor whose gradient the rule learns from."""
        divisor = self.units.divisor(flat)  # that of the whole batch, even if only some rows cross
        units = Units(lambda _: divisor, self.units.loss_scale)
        crossing = PlainCrossing(units, self.instruments, entered=self.step - 1, again=True)
        frame = Frame()
        frame.info = info
        return crossing(Interface(_NAME, self.rule, frame, copies=False), h)

    def _complement(self, rows: SequenceMask, what: str) -> SequenceMask:
        """Return the sequences that are not among some: True for all, False for none, or a mask."""
        if isinstance(rows, bool):
            return not rows
        if rows.dtype != torch.bool or rows.shape != (self._batch_size,):
            raise ShapeError(
                f"{what} is {rows.dtype} of shape {tuple(rows.shape)}, expected bool ({self._batch_size},), one for "
                "each sequence, or True or False for all"
            )
        return ~rows

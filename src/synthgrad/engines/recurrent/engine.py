"""Truncated BPTT with credit from beyond the unroll: the loop around `Boundary`, and its λ-returns.

With a window of one unroll this is the ordinary loop:

    1. the state is detached, and the rule will learn from its gradient
    2. the network runs over ``T`` steps, with its own fused kernels
    3. the final state receives the rule's credit, one backward pass trains everything, and the optimizer steps

With longer windows the optimizer steps once for several unrolls, whose graphs are kept until then, and the
rule learns from λ-returns over them (`lambda_returns`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...core import ConfigError, Guard, ShapeError, Timeline
from ...core.given import brief, takes
from ...core.tokens import explained
from ..base import Criterion, StepRecord, check_loss, explain_load_errors
from ..checks import check_criterion
from ..optimizers import OptimizerFactory, clear_autocast_cache, make_optimizers, zero_grad
from ..watch import check_gradients_have_optimizers
from .boundary import Boundary, SequenceMask, UnrollStart
from .lambda_returns import RetainedUnroll, lambda_returns

__all__ = ["Recurrent", "RecurrentNetwork"]


class RecurrentNetwork(Protocol):
    """The interface that a network must have: a module whose state is an argument and a result.

    A network with an auxiliary task also has ``features(x, state) -> (features, state)``, whose features have
    the batch first, and ``head(features) -> outputs``.
    """

    def __call__(self, x: Any, state: Any) -> tuple[Any, Any]: ...
    def initial_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Any: ...


class Recurrent:
    """Trains a recurrent network by truncated BPTT, with a rule at the boundaries.

    Args:
        net: the network; ``net(x, state)`` returns outputs and state.
        boundary: the boundary between unrolls. With `NoBackprop` as its rule this is plain truncated BPTT.
        criterion: takes outputs and targets of an unroll, returns a scalar, reduced as ``boundary.units``
            says.
        optimizer: takes parameters, returns an optimizer; one for network and rule.
        rule_options: options for the parameter group of the rule, such as ``{"lr": 1e-3}``.
        window: the number of unrolls per update.
        mix: ``λ``: within a window the rule learns from ``(1 - λ)`` of its own credit at the next boundary
            and ``λ`` of the gradient that arrived there (0: plain DNI).
        guard: whether to stop with `DivergedError` at a loss that is not finite.
        max_norm: the norm to which the gradients of all parameters of the network together are clipped; None
            to leave them as they are. The rule's targets and the rule's own gradients are not clipped.
        timeline: records what happens, in order; None to record nothing.

    Attributes:
        state: the final state of the last unroll, detached; None before the first unroll.

    Raises:
        ConfigError: if a number is out of range, or ``mix`` is given with a window of one unroll.
    """

    def __init__(
        self,
        net: nn.Module,
        boundary: Boundary,
        criterion: Criterion,
        optimizer: OptimizerFactory,
        *,
        rule_options: Mapping[str, Any] | None = None,
        window: int = 1,
        mix: float = 0.0,
        guard: bool | Guard = True,
        max_norm: float | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        if not isinstance(boundary, Boundary):
            raise ConfigError(
                f"boundary={brief(boundary)}: expected a Boundary, as in engines.Boundary(rule, state) with an example of "
                "the network's state"
            )
        check_criterion(criterion)
        if max_norm is not None and not max_norm > 0:
            raise ConfigError(f"max_norm={max_norm}: expected a norm above 0, or None")
        if window < 1:
            raise ConfigError(f"window={window}: expected at least 1 unroll to an update")
        if not 0 <= mix <= 1:
            raise ConfigError(f"mix={mix}: expected a share between 0 and 1")
        if mix and window == 1:
            raise ConfigError(
                f"mix={mix} has no effect with window=1; keep several unrolls: window=2 or more"
            )
        if window > 1 and boundary.observe_every > 1:
            raise ConfigError(
                f"window={window} and a boundary with observe_every={boundary.observe_every}: λ-returns need the rule "
                "to learn at every unroll; build it without"
            )
        if boundary.units.loss_scale is not None:
            raise ConfigError(
                "the boundary was built with loss_scale, which is for a loop of your own: here no loss is scaled; "
                "build it without"
            )
        if boundary.future is not None and not (hasattr(net, "features") and hasattr(net, "head")):
            raise ConfigError(
                f"{type(net).__name__} has no method features(x, state) or no head, which the auxiliary task "
                "reads; give it both, or leave the task out"
            )
        self.net = net
        self.boundary = boundary
        self.criterion = criterion
        self._own = [p for p in net.parameters() if p.requires_grad]
        rules = [(f"boundary.{n}", p) for n, p in boundary.named_parameters()]
        self.optimizers = make_optimizers(
            optimizer, "all", (net.named_parameters(), None), (rules, rule_options)
        )
        self.window = window
        self.mix = mix
        self.max_norm = max_norm
        self.state: Any = None
        self._context: Tensor | None = None  # the context with which the rule gave credit for `state`
        self._rows: int | None = (
            None  # length of the first dimension of the inputs so far: the batch, where that is first
        )
        self._instruments = boundary.instruments  # includes the boundary's monitor
        self._instruments.guard, self._instruments.timeline = Guard.of(guard, skips=False), timeline
        _check_network(net, boundary)
        self._step = 0
        self._open: list[RetainedUnroll] = []

    def step(
        self,
        x: Any,
        y: Any,
        *,
        fresh: SequenceMask = False,
        ended: SequenceMask = False,
        context: Tensor | None = None,
    ) -> StepRecord:
        """Run one unroll.

        Args:
            x: inputs of ``T`` steps, as the network expects them, the batch first: the initial state is
                created for this batch size.
            y: targets, as the criterion expects them.
            fresh: the sequences that start from the network's initial state, ``(B,)`` bool or one for all.
                All sequences of the first unroll do.
            ended: the sequences that end with this unroll.
            context: the context of the rule for the state at the end of the unroll. The rule gets the same
                context for the same state at the start of the next unroll.

        Returns:
            The unroll's loss, and ``["all"]`` as the updated modules; an empty list within a window.

        Raises:
            ShapeError: if a state, a mask or labels have the wrong shape.
            ConfigError, ContextError: if ids or labels are outside the vocabulary, or no label of the unroll counts.
            DivergedError: if the loss is not finite.
        """
        boundary = self.boundary
        clear_autocast_cache()
        if self.state is None:
            fresh = True
        self._instruments.step = self._step
        state = self._initial_or_carried_state(x, fresh)
        if self.window == 1:
            start = UnrollStart(boundary.start(state, fresh=fresh, context=self._context))
        else:
            start = boundary.start_unroll(state, fresh=fresh, context=self._context)
        with explained(self.net):
            loss, features, state = self._run(x, y, start.state)
        self._instruments.log("forward", "net", self._step)
        # The auxiliary task reads the first step of the unroll, which is the farthest from what it predicts.
        seen = None if features is None else features[:, 0]
        end = boundary.end_unroll(loss, state, features=seen, ended=ended, context=context)
        # Detached: the next unroll continues from the values, and this graph can be freed.
        self.state = pytree.tree_map(lambda part: part.detach(), state)
        self._context = context
        check_loss(self._instruments, loss.detach(), y)
        record = StepRecord(self._step, loss.detach())
        self._step += 1
        if self.window == 1:
            self._zero_grad()
            self._update(end.loss)
            record.updated = ["all"]
        else:
            self._open.append(RetainedUnroll(start, end, ended))
            if len(self._open) == self.window:
                self._update_window()
                record.updated = ["all"]
        return record

    def flush(self) -> None:
        """Update from a window that is not full, and read the checks that the guard has queued.

        Raises:
            DivergedError: if a loss was not finite.
        """
        if self._open:
            self._update_window()
        self._instruments.flush()

    @property
    def can_save(self) -> bool:
        """Whether the state can be saved: it cannot while the graphs of a window's unrolls are kept."""
        return not self._open

    def state_dict(self) -> dict[str, Any]:
        """Return optimizers, state and step count.

        Raises:
            ConfigError: if the graphs of a window's unrolls are kept; see `can_save`.
        """
        if self._open:
            raise ConfigError(
                "a window is not full, and its graphs cannot be saved; call flush() before state_dict()"
            )
        return {
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self._step,
            "boundary_step": self.boundary.step,
            "state": self.state,
            "context": self._context,
        }

    @explain_load_errors
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._step = int(state["step"])
        self.boundary.step = int(state["boundary_step"])
        self.state = state["state"]
        self._context = state.get("context")

    def _initial_or_carried_state(self, x: Any, fresh: SequenceMask) -> Any:
        """Return the state to continue from, with the initial state for fresh sequences."""
        layout = self.boundary.layout
        rows: int = pytree.tree_leaves(x)[0].shape[0]
        if self.state is not None and fresh is not True:
            before, self._rows = self._rows, rows
            batch = len(layout.pack(self.state))
            if before is not None and rows not in (before, batch):
                raise ShapeError(
                    f"this unroll has {rows} sequences and the one before had {batch}, whose states it would go on from; give "
                    "as many in every unroll (drop_last=True), or say fresh=True where all of them begin anew"
                )
        self._rows = rows
        if fresh is False:
            return self.state
        if self.state is None or fresh is True:
            like = next(self.net.parameters())
            state = self._initial(rows, like.device)
            self._check_initial(state, rows)
            return state
        flat = layout.pack(self.state)
        assert isinstance(fresh, Tensor)
        if fresh.shape != (len(flat),):
            raise ShapeError(
                f"fresh has shape {tuple(fresh.shape)}, expected ({len(flat)},), one for each sequence"
            )
        initial = layout.pack(self._initial(len(flat), flat.device))
        return layout.unpack(torch.where(fresh[:, None], initial, flat))

    def _initial(self, batch_size: int, device: torch.device) -> Any:
        network: Any = self.net
        return network.initial_state(batch_size, device, self.boundary.layout.dtype)

    def _check_initial(self, state: Any, batch_size: int) -> None:
        """Refuse an initial state of another batch size: most likely the batch dimension is another one."""
        layout = self.boundary.layout
        where = f"the state that {type(self.net).__name__}.initial_state has returned"
        layout.check(state, where)
        found = layout.batch_size_of(state)
        if found != batch_size:
            raise ShapeError(
                f"{where} has {found} along dimension {layout.batch_dim}, expected the {batch_size} sequences of the "
                f"batch; if that is another dimension of the state, say so: Boundary(..., batch_dim="
                f"{0 if layout.batch_dim else 1}), which nn.LSTM and nn.GRU "
                f"{'do not use' if layout.batch_dim else 'need'}"
            )

    def _run(self, x: Any, y: Any, state: Any) -> tuple[Tensor, Tensor | None, Any]:
        """Return loss, features and state of an unroll."""
        network: Any = self.net
        features = None
        if self.boundary.future is None:
            made = network(x, state)
            if not isinstance(made, tuple) or len(made) != 2:
                raise ShapeError(
                    f"{type(self.net).__name__} has returned {brief(made)}, expected a pair: its outputs and its new state"
                )
            outputs, state = made
            self.boundary.layout.check(state, "the state at the end of an unroll")
        else:
            features, state = network.features(x, state)
            outputs = network.head(features)
        return self.criterion(outputs, y), features, state

    def _zero_grad(self) -> None:
        for optimizer in self.optimizers:
            zero_grad(optimizer)

    def _update(self, *losses: Tensor) -> None:
        """Run backward and step the optimizers.

        Args:
            losses: the losses of the newest unrolls, in order.
        """
        for k, loss in enumerate(losses):
            self._instruments.log("backward", "net", self._step - len(losses) + k)
            if loss.requires_grad:
                loss.backward()
        if self.max_norm is not None:
            nn.utils.clip_grad_norm_(self._own, self.max_norm)
        check_gradients_have_optimizers(self.net.named_parameters(), self.optimizers)
        for optimizer in self.optimizers:
            optimizer.step()
        self._instruments.log("update", "all", self._instruments.step)

    def _update_window(self) -> None:
        """Update from the unrolls of a window."""
        boundary, window = self.boundary, self._open
        self._open = []
        self._zero_grad()
        for unroll, gradient in lambda_returns(window, boundary, self.mix):
            boundary.observe(unroll.start, gradient)
        # One loss after the other: the sum of the losses would keep all graphs until the last backward pass.
        self._update(*(unroll.end.loss for unroll in window))


def _check_network(net: nn.Module, boundary: Boundary) -> None:
    """Refuse a network without an explicit state.

    Raises:
        ConfigError: naming the method.
    """
    name = type(net).__name__
    initial = getattr(net, "initial_state", None)
    wanted = "initial_state(batch_size, device, dtype), which returns the state before the first step"
    if not callable(initial) or isinstance(initial, Tensor):
        raise ConfigError(f"{name} has no method initial_state, expected {wanted}; give it one")
    if not takes(initial, 1, torch.device("cpu"), torch.float32):
        raise ConfigError(
            f"{name} has initial_state{inspect.signature(initial)}, expected {wanted}; give it these three arguments"
        )
    if boundary.future is None and not takes(net.forward, None, None):
        raise ConfigError(
            f"{name} has forward{inspect.signature(net.forward)}, expected forward(x, state), which returns outputs and "
            "state; give it the state as an argument"
        )

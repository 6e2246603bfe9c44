"""The in-process engine: every module updates as soon as its own forward is done (DNI §2.1).

::

    forward of module k ──► interface k: credit δ̂ₖ = Mₖ(hₖ, c)
                                │ 1. backward of module k from δ̂ₖ; its graph is freed
                                │ 2. that backward has produced δₖ₋₁, the message for interface k−1:
                                │    Mₖ₋₁ observes it
                                │ 3. one optimizer step: module k, and the Mₖ₋₁ that speaks for it
                                ▼
    forward of module k+1 on a detached hₖ …; at the output the true gradient takes the place of δ̂

The user's own forward runs unchanged: the three steps happen inside the forward hooks at the cuts.
So at any time the graph of one module is held, whatever the depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..core import ConfigError, Decoupled, Guard, Info, Message, Module, Monitor, Timeline
from ..core.cut import pending_gradient
from ..core.graph import OUTPUT
from ..core.interface import Interface
from .base import Criterion, OptimizerFactory, StepRecord, make_optimizer, reduced, zero_grad
from .checks import check_unlockable
from .lags import Batch, Crossed, Lag, Mailbox, check_lags

__all__ = ["InProcess"]


class _NothingAbove(BaseException):
    """Ends a forward pass at an interface whose lag has not filled yet. Never leaves `step`."""


class _Turn:
    """One module's part of a step: what it has been fed with, and what it has ended in so far."""

    def __init__(self, draws: bool) -> None:
        self.updates = draws
        self.fed: dict[str, Crossed] = {}
        self.ends: list[Tensor] = []
        self.grads: list[Tensor | None] = []
        self.reached = 0
        #: ``(B,)``: the loss of each example as far as is known where the module ends.
        self.value: Tensor | None = None

    def drop(self) -> None:
        """Let go of every tensor: a step must not hold more the deeper the network is."""
        self.fed.clear()
        self.ends.clear()
        self.grads.clear()


class InProcess:
    """Trains a decoupled network without locks, in one process.

    Args:
        net: what `decouple` returned; put it into training mode.
        criterion: takes output and target, returns a scalar loss, reduced as ``net.units`` says; or the
            loss of each example, ``(B,)``, which rules that predict loss values learn from.
        optimizer: takes parameters, returns an optimizer; called once for each module, with the
            parameters of the module, of the rules at the interfaces that feed it (they speak for it), and
            of rules at its own end that learn from their own loss alone.
        rule_options: options for the rules' parameter groups, such as ``{"lr": 1e-3}``.
        update_prob: each module, with the rules that speak for it, updates with this probability in a
            step; else it only passes activations on (DNI §3.1, sparse updates).
        generator: source of the draws for ``update_prob``; on the CPU.
        lags: steps that messages take to cross each interface, `Lag` by name; 0 where not named.
        monitor: measures the quality of credits; None to measure nothing.
        guard: stop with `DivergedError` at a message or loss that is not finite.
        timeline: is filled with what happens, in order; None to keep nothing.

    Attributes:
        optimizers: one for each module with something to train.

    Raises:
        ConfigError: if a setting is out of range, or the network cannot be trained without locks
            (a parameter that two modules share, or that checkpointing hides; a rule whose error flows
            into ``h``; a loss scale).
    """

    def __init__(
        self,
        net: Decoupled,
        criterion: Criterion,
        optimizer: OptimizerFactory,
        *,
        rule_options: Mapping[str, Any] | None = None,
        update_prob: float = 1.0,
        generator: torch.Generator | None = None,
        lags: Mapping[str, Lag] | None = None,
        monitor: Monitor | None = None,
        guard: bool = True,
        timeline: Timeline | None = None,
    ) -> None:
        if not isinstance(net, Decoupled):
            raise ConfigError(f"got a {type(net).__name__}, expected what synthgrad.decouple returned")
        if not 0 < update_prob <= 1:
            raise ConfigError(f"update_prob={update_prob!r}: expected a probability over 0 and up to 1")
        self.net = net
        self.criterion = criterion
        self.update_prob = update_prob
        self.monitor = monitor
        self.timeline = timeline
        self._generator = generator
        self._guard = Guard() if guard else None
        graph = net.graph
        check_unlockable(net)
        self._modules = graph.modules
        self._names = [m.name for m in graph.modules]
        self._ends_at = {end: k for k, m in enumerate(graph.modules) for end in m.ends}
        self._consumers = {name: graph.consumers(name) for name in graph.sites}
        self._is_chain = graph.is_chain
        self._mail = {name: Mailbox(lag) for name, lag in check_lags(graph, lags or {}).items()}
        self._optimizers = [
            make_optimizer(optimizer, *self._parameters(m), rule_options) for m in graph.modules
        ]
        self._step = 0
        # The step at hand:
        self._turns: list[_Turn] = []
        self._batch = Batch(Info(), None, 0)
        self._waiting: dict[str, int] = {}
        self._record = StepRecord(0)

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers of the modules, in the order of the forward pass."""
        return [o for o in self._optimizers if o is not None]

    def step(
        self, x: Tensor | tuple[Any, ...], y: Any, *, context: Tensor | None = None, ids: Tensor | None = None
    ) -> StepRecord:
        """Run one step: when it returns, every module that drew an update has made it.

        Args:
            x: input, ``(B, ...)``, or a tuple of the model's positional arguments.
            y: target, as the criterion wants it.
            context: of the rules, ``(B, ...)``; ``y`` itself where it is a tensor and nothing is given.
            ids: ``(B,)`` int64, which examples these are.

        Raises:
            DivergedError: if a message or the loss is not finite; names interface and step.
        """
        args = x if isinstance(x, tuple) else (x,)
        c = y if context is None and isinstance(y, Tensor) else context
        info = Info(c, ids, self._step, args[0] if isinstance(args[0], Tensor) else None)
        self._batch = Batch(info, y, self._step)
        self._turns = [_Turn(draw) for draw in self._draw()]
        self._waiting = {name: len(takers) for name, takers in self._consumers.items()}
        self._record = record = StepRecord(self._step)
        grad_mode = torch.is_grad_enabled()
        try:
            with self.net.crossed_by(self._cross):
                self._grad_mode(0)
                record.loss = self._at_output(self.net.model(*args))
        except _NothingAbove:
            pass
        except BaseException:
            for optimizer in self.optimizers:
                zero_grad(optimizer)  # what this step has begun must not leak into the next
            raise
        finally:
            torch.set_grad_enabled(grad_mode)
            self._turns = []
        self._step += 1
        return record

    def finish(self) -> None:
        """Read what the guard has queued on an accelerator.

        Raises:
            DivergedError: if a message or loss was not finite.
        """
        if self._guard is not None:
            self._guard.flush()

    # -- what happens at the cuts -------------------------------------------------------------------

    def _cross(self, interface: Interface, h: Tensor) -> Tensor:
        """Module(s) below ``interface`` have finished: they learn now. Return what goes on."""
        name = interface.name
        k = self._ends_at[name]
        turn = self._turns[k]
        crossed = Crossed(self._batch, h.detach())
        self._reach(k, turn)
        turn.ends.append(h)
        turn.grads.append(self._credit(interface, h, crossed) if turn.updates else None)
        self._end(k, turn)
        above = self._mail[name].pass_up(crossed)
        if above is None:
            raise _NothingAbove
        self._batch = above.batch
        return self._feed(interface, above)

    def _credit(self, interface: Interface, h: Tensor, crossed: Crossed) -> Tensor | None:
        """Ask the rule; return the gradient for ``h`` in the criterion's units."""
        info = crossed.batch.info
        interface.rule.check(h, info)
        credit = interface.rule.credit(h, info)
        if credit.loss is not None:
            credit.loss.backward()
        lag = self._mail[interface.name].lag
        if lag.forward or lag.observe:
            credit.pending = ()  # the rule's parameters will have changed when the message comes
        crossed.credit = credit
        self._turns[self._ends_at[interface.name]].value = credit.value
        self._log("credit", interface.name, crossed.batch)
        if credit.delta is None:
            return None
        return credit.delta * (1.0 / self.net.units.divisor(h))  # a product is faster

    def _feed(self, interface: Interface, crossed: Crossed) -> Tensor:
        """Feed the modules above from a new leaf; its gradient will be the message."""
        takers = self._consumers[interface.name]
        given = crossed.credit is not None and crossed.credit.delta is not None
        read = interface.rule.listens or (self.monitor is not None and given)
        wants = read and all(self._turns[k].updates for k in takers)
        crossed.leaf = leaf = crossed.h.detach().requires_grad_(wants)
        for k in takers:
            self._turns[k].fed[interface.name] = crossed
        self._grad_mode(takers[0])
        return leaf.clone() if interface.copies else leaf

    def _grad_mode(self, k: int) -> None:
        """Build no graph for a module that only passes activations on. In a chain modules run in turn."""
        if self.update_prob < 1 and self._is_chain:
            torch.set_grad_enabled(self._turns[k].updates)

    def _at_output(self, output: Any) -> Tensor:
        """The last module has finished: the true gradient is at hand."""
        k = self._ends_at[OUTPUT]
        turn = self._turns[k]
        loss, turn.value = reduced(self.criterion(output, self._batch.target), self.net.units)
        if self._guard is not None:
            self._guard.check("loss", self._step, loss.detach())
        self._reach(k, turn)
        turn.ends.append(loss)
        turn.grads.append(torch.ones_like(loss) if turn.updates else None)
        self._end(k, turn)
        return loss.detach()

    # -- a module's part of a step --------------------------------------------------------------------

    def _reach(self, k: int, turn: _Turn) -> None:
        """Count an end of module ``k``; its forward is done at the last one."""
        turn.reached += 1
        if turn.reached == len(self._modules[k].ends):
            self._log("forward", self._names[k], self._batch)

    def _end(self, k: int, turn: _Turn) -> None:
        """Let module ``k`` learn, if all its ends have been reached."""
        module = self._modules[k]
        if turn.reached < len(module.ends):
            return
        learned = False
        if turn.updates:
            learned = self._backward(k, turn)
        else:
            self._log("skip", self._names[k], self._batch)
        for name in module.inputs:
            learned |= self._observe_due(name)
        turn.drop()
        optimizer = self._optimizers[k]
        if optimizer is not None and learned:
            optimizer.step()
            zero_grad(optimizer)
            self._record.updated.append(self._names[k])
            self._log("update", self._names[k], self._batch)

    def _backward(self, k: int, turn: _Turn) -> bool:
        """Use the module's graph, which frees it; return whether there was credit to learn from."""
        if not _backward(turn.ends, turn.grads):
            return False
        self._log("backward", self._names[k], self._batch)
        for name in self._modules[k].inputs:
            self._waiting[name] -= 1
            crossed = turn.fed[name]
            leaf = crossed.leaf
            # Complete when every module that this interface feeds has added its part.
            if self._waiting[name] or leaf is None or leaf.grad is None:
                continue
            gradient = leaf.grad.mul_(self.net.units.divisor(leaf))  # the leaf is dropped: in place
            if self._guard is not None:
                self._guard.check(name, self._step, gradient)
            crossed.message, crossed.leaf = Message(gradient, self._value(k, name)), None
            self._log("message", name, crossed.batch)
            self._mail[name].pass_down(crossed, self._step)
        return True

    def _value(self, k: int, name: str) -> Tensor | None:
        """Return the loss values of the message at an interface: known where nothing branches only."""
        branches = len(self._modules[k].ends) > 1 or len(self._consumers[name]) > 1
        return None if branches else self._turns[k].value

    def _observe_due(self, name: str) -> bool:
        """Let the rule at an interface learn from the messages due at this step; return whether any was."""
        due = self._mail[name].take_due(self._step)
        for arrived in due:
            assert arrived.message is not None
            self._observe(self.net.interfaces[name], arrived, arrived.message)
        return bool(due)

    def _observe(self, interface: Interface, crossed: Crossed, message: Message) -> None:
        """Let the rule learn from one message."""
        rule, info, credit = interface.rule, crossed.batch.info, crossed.credit
        if self.monitor is not None and credit is not None:
            self.monitor.record(interface.name, credit.delta, message.gradient)
        if not rule.listens:
            return
        if credit is not None and credit.pending:
            _backward(credit.pending, pending_gradient(rule, crossed.h, info, message, credit.pending))
        else:
            with torch.enable_grad():  # the module below may be one that drew no update
                loss = rule.observe(crossed.h, info, message)
            if loss is not None and loss.requires_grad:
                loss.backward()
        self._log("observe", interface.name, crossed.batch)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside ``net.state_dict()``: optimizers, draws, messages under way."""
        return {
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self._step,
            "generator": None if self._generator is None else self._generator.get_state(),
            "mail": {name: mailbox.state_dict() for name, mailbox in self._mail.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state that `state_dict` returned, in an engine built in the same way."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._step = int(state["step"])
        if self._generator is not None and state["generator"] is not None:
            self._generator.set_state(state["generator"])
        for name, mailbox in self._mail.items():
            mailbox.load_state_dict(state["mail"][name])

    # -- the rest ---------------------------------------------------------------------------------------

    def _parameters(self, module: Module) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        own = [self.net.model.get_parameter(n) for n in module.parameters]
        # A rule that learns from messages is updated with the module that sends them: the last of those
        # that its interface feeds. One that learns from its own loss alone, with the module below it.
        position = self._ends_at[module.ends[0]]
        interfaces, consumers = self.net.interfaces, self.net.graph.consumers
        rules = [interfaces[n].rule for n in module.ends if n != OUTPUT and not interfaces[n].rule.listens]
        rules += [
            interfaces[n].rule
            for n in module.inputs
            if interfaces[n].rule.listens and consumers(n)[-1] == position
        ]
        return own, [p for rule in rules for p in rule.parameters()]

    def _draw(self) -> list[bool]:
        n = len(self._modules)
        if self.update_prob == 1:
            return [True] * n
        return (torch.rand(n, generator=self._generator) < self.update_prob).tolist()

    def _log(self, kind: Any, where: str, batch: Batch) -> None:
        if self.timeline is not None:
            self.timeline.add(kind, where, self._step, batch.entered)


def _backward(roots: Sequence[Tensor], grads: Sequence[Tensor | None]) -> bool:
    """Run backward from the roots that have a gradient and a graph; return whether there were any."""
    pairs = [(r, g) for r, g in zip(roots, grads, strict=True) if g is not None and r.requires_grad]
    if pairs:
        torch.autograd.backward([r for r, _ in pairs], [g for _, g in pairs])
    return bool(pairs)

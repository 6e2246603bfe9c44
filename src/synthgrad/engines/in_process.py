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
So at any time the graph of one module is held, whatever the depth. Two things differ where they are asked for:

- A rule may have the module below *wait* (`Credit.wait`): its turn is kept until the message has come, at once as
  in backpropagation, or some steps later where messages lag, which is training with delayed gradients.
- An interface with *synthetic inputs* feeds the module above with what its input rule supplies, for the same batch
  or for a newer one, which the module below has not seen yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..core import (
    ConfigError,
    Decoupled,
    Guard,
    Info,
    InputRule,
    Message,
    Monitor,
    Timeline,
)
from ..core.cut import pending_gradient
from ..core.graph import OUTPUT, first_tensor
from ..core.interface import Interface
from ..core.outputs import tensors_in
from .base import Criterion, StepRecord, model_inputs, reduced
from .checks import check_unlockable, refuse_half, warn_of_evaluation
from .lags import Batch, Crossed, Lag
from .learners import learners
from .mail import Mail
from .optimizers import OptimizerFactory, clear_casts, make_optimizers, step_all, zero_grad
from .penalty import Penalties, Penalty
from .stash import keeping_weights
from .turns import Turn, run_backward
from .watch import Watch, reused

__all__ = ["InProcess"]


class _NothingAbove(BaseException):
    """Ends a forward pass at an interface whose lag has not filled yet. Never leaves `step`."""


class InProcess:
    """Trains a decoupled network without locks, in one process.

    Args:
        net: what `decouple` returned; put it into training mode.
        criterion: takes output and target, returns a scalar loss, reduced as ``net.units`` says; or the
            loss of each example, ``(B,)``, which rules that predict loss values learn from.
        optimizer: takes parameters, returns an optimizer, or several as a list; called once for each module, with the
            parameters of the module, of the rules at the interfaces that feed it (they speak for it), and,
            at its own end, of rules that learn from their own loss alone and of input rules. The list of parameters
            knows their names too, see `Parameters`.
        rule_options: options for the rules' parameter groups, such as ``{"lr": 1e-3}``.
        input_options: the same for the input rules.
        update_prob: each module, with the rules that speak for it, updates with this probability in a
            step; else it only passes activations on (DNI §3.1, sparse updates).
        generator: source of the draws for ``update_prob``; on the CPU.
        lags: steps that messages take to cross each interface, `Lag` by name; 0 where not named.
        penalty: what is added to the loss that is no function of the output, such as a weight penalty: takes the
            parameters of a module, returns a scalar. Or one for some modules, by name: a balancing loss, say, which
            that module has left in an attribute in this step.
        monitor: measures the quality of credits; None to measure nothing.
        guard: stop with `DivergedError` at a message or loss that is not finite.
        timeline: is filled with what happens, in order; None to keep nothing.

    Attributes:
        optimizers: those of each module with something to train, in the order of the forward pass.

    Raises:
        ConfigError: if a setting is out of range, or the network cannot be trained without locks
            (a parameter that two modules share, or that checkpointing hides; a rule whose error flows
            into ``h``; a loss scale); if an optimizer needs a closure, or not every parameter.
    """

    def __init__(
        self,
        net: Decoupled,
        criterion: Criterion,
        optimizer: OptimizerFactory,
        *,
        rule_options: Mapping[str, Any] | None = None,
        input_options: Mapping[str, Any] | None = None,
        update_prob: float = 1.0,
        generator: torch.Generator | None = None,
        lags: Mapping[str, Lag] | None = None,
        penalty: Penalty | None = None,
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
        self._mail = Mail(net, lags or {})
        # A graph that outlives its step must not see the updates in between.
        self._stashes = any(i.rule.waits and self._mail.is_late(n) for n, i in net.interfaces.items())
        self._optimizers = [
            make_optimizers(
                optimizer, m.name, *zip(learners(net, m, k), (None, rule_options, input_options), strict=True)
            )
            for k, m in enumerate(graph.modules)
        ]
        self._penalties = Penalties(net, penalty)
        self._watch = Watch(net, self.optimizers)
        self._seen_criterion = False
        self._step = 0
        # The step at hand:
        self._turns: list[Turn] = []
        self._batch = Batch(Info(), None, 0)
        self._record = StepRecord(0)

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers of the modules, in the order of the forward pass."""
        return [o for own in self._optimizers for o in own]

    def step(
        self,
        x: Any = None,
        y: Any = None,
        *,
        context: Tensor | None = None,
        ids: Tensor | None = None,
        **inputs: Any,
    ) -> StepRecord:
        """Run one step: when it returns, every module that drew an update has made it.

        Args:
            x: input, ``(B, ...)``; a tuple of the model's positional arguments; or a mapping of its keyword arguments.
            y: target, as the criterion wants it.
            context: of the rules, ``(B, ...)``; ``y`` itself where it is a tensor and nothing is given.
            ids: ``(B,)`` int64, which examples these are.
            inputs: further keyword arguments of the model, such as ``attention_mask=…``.

        Raises:
            DivergedError: if a message or the loss is not finite; names interface and step.
            CutError: if this batch runs through the network in another way than the example did (a cut is left out or
                run twice, a skip connection appears), or the criterion has a term beyond the output.
            ConfigError: if a parameter has been thawed that is in no optimizer.
        """
        passed = model_inputs(x, inputs)
        c = y if context is None and isinstance(y, Tensor) else context
        info = Info(c, ids, self._step, first_tensor(*passed))
        self._record = record = StepRecord(self._step)
        entering = self._mail.enter(passed, Batch(info, y, self._step))
        if entering is None:  # a module that is ahead needs newer batches than have come
            self._step += 1
            return record
        (args, kwargs), self._batch = entering
        if not self._step:
            warn_of_evaluation(self.net)
        clear_casts()
        self._turns = [Turn(k, updates=draw) for k, draw in enumerate(self._draw())]
        grad_mode = torch.is_grad_enabled()
        try:
            with self.net.crossed_by(self._cross), keeping_weights(self.net.model, needed=self._stashes):
                self._grad_mode(0)
                output = self.net.model(*args, **kwargs)
                self.net.check_crossed()
                record.loss = self._at_output(output)
            self._watch.after_step()
        except _NothingAbove:
            self._watch.after_step()
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
        turn = self._turns[self._ends_at[name]]
        seen = interface.batch_first(h)
        crossed = Crossed(self._batch, seen.detach())
        self._reach(turn)
        grad = self._credit(interface, seen, crossed, turn) if turn.updates else None
        turn.end(h, None if grad is None else interface.as_made(grad))
        if crossed.credit is not None and crossed.credit.wait:
            turn.wait(crossed)
        above = crossed
        if interface.input_rule is not None:
            above = self._supply(interface, interface.input_rule, crossed, turn)
        self._end(turn)
        above = self._mail.pass_up(name, above, crossed)
        if above is None:
            raise _NothingAbove
        self._batch = above.batch
        return self._feed(interface, above)

    def _credit(self, interface: Interface, h: Tensor, crossed: Crossed, turn: Turn) -> Tensor | None:
        """Ask the rule; return the gradient for ``h`` in the criterion's units, None if there is none yet.

        Args:
            interface: the interface.
            h: the message, the batch first.
            crossed: it is kept here until its message has come.
            turn: of the module below.
        """
        info = crossed.batch.info
        refuse_half(interface.name, h)
        interface.rule.check(h, info)
        crossed.credit = credit = interface.rule.credit(h, info)
        if credit.loss is not None:
            credit.loss.backward()
            turn.learned = True
        if self._mail.is_late(interface.name):
            credit.pending = ()  # the rule's parameters will have changed when the message comes
        turn.value = credit.value
        self._log("credit", interface.name, crossed.batch)
        if credit.delta is None or credit.wait:
            return None
        return credit.delta * (1.0 / self.net.units.divisor(h))  # a product is faster

    def _supply(self, interface: Interface, rule: InputRule, crossed: Crossed, turn: Turn) -> Crossed:
        """Return what stands in for ``h`` above the interface; let its rule learn from ``h``."""
        ahead, batch = self._mail.ahead(interface.name, crossed.batch)
        info = crossed.batch.info
        rule.check(batch.info.inputs, batch.info)
        assert batch.info.inputs is not None
        assert info.inputs is not None
        supply = rule.supply(batch.info.inputs, batch.info)
        self._log("supply", interface.name, batch)
        if turn.updates:
            loss = rule.observe(info.inputs, info, crossed.h, () if ahead else supply.pending)
            if loss is not None and loss.requires_grad:
                loss.backward()
                turn.learned = True
        return Crossed(batch, supply.h)

    def _feed(self, interface: Interface, crossed: Crossed) -> Tensor:
        """Feed the modules above from a new leaf; its gradient will be the message."""
        takers = self._consumers[interface.name]
        rule = interface.rule
        updates = all(self._turns[k].updates for k in takers)
        if interface.input_rule is not None and updates and rule.listens:
            # The message will belong to the synthetic input: so must the credit that it is compared with.
            crossed.credit = rule.credit(crossed.h, crossed.batch.info)
            if self._mail.lag(interface.name).observe:
                crossed.credit.pending = ()
        given = crossed.credit is not None and crossed.credit.delta is not None
        read = rule.listens or crossed.waiting is not None or (self.monitor is not None and given)
        crossed.leaf = leaf = crossed.h.detach().requires_grad_(read and updates)
        crossed.missing = len(takers)
        for k in takers:
            self._turns[k].fed[interface.name] = crossed
        self._grad_mode(takers[0])
        return interface.as_made(leaf.clone() if interface.copies else leaf)

    def _grad_mode(self, k: int) -> None:
        """Build no graph for a module that only passes activations on. In a chain modules run in turn."""
        if self.update_prob < 1 and self._is_chain:
            torch.set_grad_enabled(self._turns[k].updates)

    def _at_output(self, output: Any) -> Tensor:
        """The last module has finished: the true gradient is at hand."""
        turn = self._turns[self._ends_at[OUTPUT]]
        loss, turn.value = reduced(self.criterion(output, self._batch.target), self.net.units)
        if not self._seen_criterion:
            self._watch.criterion(loss, tensors_in(output))
            self._seen_criterion = True
        if self._guard is not None:
            self._guard.check("loss", self._step, loss.detach())
        self._reach(turn)
        turn.end(loss, torch.ones_like(loss) if turn.updates else None)
        self._end(turn)
        return loss.detach()

    # -- a module's part of a step --------------------------------------------------------------------

    def _reach(self, turn: Turn) -> None:
        """Log the module's forward, if this is the last of its ends."""
        turn.batch = self._batch
        if len(turn.ends) + 1 == len(self._modules[turn.position].ends):
            self._log("forward", self._names[turn.position], self._batch)
            if self._penalties and turn.updates:
                with torch.enable_grad():
                    turn.penalty = self._penalties.of(self._names[turn.position])

    def _end(self, turn: Turn) -> None:
        """Let a module learn, if all its ends have been reached and none waits for its message."""
        k = turn.position
        module, name = self._modules[k], self._names[k]
        if len(turn.ends) < len(module.ends):
            return
        learned = turn.learned
        if not turn.updates:
            self._log("skip", name, turn.batch)
        elif not turn.missing:
            learned |= self._backward(turn)
        due = self._mail.due(module.inputs, self._step)
        for interface, crossed in due:
            self._observe(self.net.interfaces[interface], crossed)
            learned = True
        if not turn.missing:
            turn.drop()
        turn.learned, turn.done = False, True
        optimizers = self._optimizers[k]
        if optimizers and learned:
            step_all(optimizers)
            if name not in self._record.updated:
                self._record.updated.append(name)
            self._log("update", name, turn.batch)
        for interface, _ in due:
            # Where modules wait, a message may be complete when the module that its rule is updated with has had its turn.
            owner = self._consumers[interface][-1]
            if owner != k and self._turns[owner].done:
                step_all(self._optimizers[owner])
        for interface, crossed in due:
            self._release(self.net.interfaces[interface], crossed)

    def _backward(self, turn: Turn) -> bool:
        """Use the module's graph, which frees it; return whether there was credit to learn from."""
        k = turn.position
        self._watch.before_learning(self._names[k])
        roots, grads = list(turn.ends), list(turn.grads)
        if turn.penalty is not None:
            roots.append(turn.penalty)
            grads.append(torch.ones_like(turn.penalty))
        try:
            if not run_backward(roots, grads):
                return False
        except RuntimeError as error:
            raise reused(self._names[k], error) from error
        self._log("backward", self._names[k], turn.batch)
        for name in self._modules[k].inputs:
            crossed = turn.fed[name]
            crossed.missing -= 1
            leaf = crossed.leaf
            # Complete when every module that this interface feeds has added its part.
            if crossed.missing or leaf is None or leaf.grad is None:
                continue
            gradient = leaf.grad.mul_(self.net.units.divisor(leaf))  # the leaf is dropped: in place
            if self._guard is not None:
                self._guard.check(name, self._step, gradient)
            crossed.message, crossed.leaf = Message(gradient, self._value(turn, name)), None
            self._log("message", name, crossed.batch)
            self._mail.pass_down(name, crossed, self._step)
        return True

    def _value(self, turn: Turn, name: str) -> Tensor | None:
        """Return the loss values of the message at an interface: known where nothing branches only."""
        branches = len(self._modules[turn.position].ends) > 1 or len(self._consumers[name]) > 1
        return None if branches else turn.value

    def _release(self, interface: Interface, crossed: Crossed) -> None:
        """Let the module below learn, if it has waited for this message."""
        if crossed.waiting is None:
            return
        assert crossed.message is not None
        (turn, end), crossed.waiting = crossed.waiting, None
        gradient = interface.rule.accept(crossed.message, crossed.batch.info)
        turn.release(end, gradient * (1.0 / self.net.units.divisor(gradient)), crossed.message.loss)
        self._end(turn)

    def _observe(self, interface: Interface, crossed: Crossed) -> None:
        """Let the rule learn from one message."""
        rule, info, credit, message = interface.rule, crossed.batch.info, crossed.credit, crossed.message
        assert message is not None
        if self.monitor is not None and credit is not None:
            self.monitor.record(interface.name, credit.delta, message.gradient)
        if not rule.listens:
            return
        if credit is not None and credit.pending:
            run_backward(credit.pending, pending_gradient(rule, crossed.h, info, message, credit.pending))
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
            **self._mail.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state that `state_dict` returned, in an engine built in the same way."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._step = int(state["step"])
        if self._generator is not None and state["generator"] is not None:
            self._generator.set_state(state["generator"])
        self._mail.load_state_dict(state)

    # -- the rest ---------------------------------------------------------------------------------------

    def _draw(self) -> list[bool]:
        n = len(self._modules)
        if self.update_prob == 1:
            return [True] * n
        return (torch.rand(n, generator=self._generator) < self.update_prob).tolist()

    def _log(self, kind: Any, where: str, batch: Batch | None) -> None:
        if self.timeline is not None and batch is not None:
            self.timeline.add(kind, where, self._step, batch.entered)

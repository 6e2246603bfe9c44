"""Checks that gradients arrive only at the module that is learning, and at parameters of some optimizer.

Autograd adds gradients to every parameter that it reaches. In a decoupled network this is right only for the
module that runs backward at that moment. Any other parameter would be trained a step late, twice, or never,
and nobody would notice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..core import ConfigError, CutError, Decoupled
from ..core.outputs import tensors_in
from .base import Criterion

__all__ = [
    "GradientWatch",
    "check_gradients_have_optimizers",
    "check_loss_once",
    "explain_backward_error",
    "leaves_of",
    "stray_gradient_error",
    "thawed_error",
]


class GradientWatch:
    """Knows which module owns each parameter of a network, and finds gradients that are in the wrong place.

    Args:
        net: the network.
        optimizers: all optimizers that train the network in this process.
        module: the name of the only module that is trained in this process; None if all modules are.
    """

    def __init__(self, net: Decoupled, optimizers: Iterable[Optimizer], module: str | None = None) -> None:
        self._module = module
        self._owner = {n: m.name for m in net.graph.modules for n in m.parameters}
        self._unowned = set(net.graph.unowned)
        self._named = [(n, p) for n, p in net.model.named_parameters()]
        self._rules = [
            (n, p)
            for n, p in net.named_parameters()
            if n.startswith(("rules.", "inputs.")) and p.requires_grad
        ]
        self._by_module = {
            m.name: [(n, net.model.get_parameter(n)) for n in m.parameters] for m in net.graph.modules
        }
        self._trained = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}

    def clear_gradients(self) -> None:
        """Drop all gradients before a step. A plain loop that warmed the network up may have left some."""
        for _, p in self._named:
            p.grad = None
        for _, p in self._rules:
            p.grad = None

    def check_before_backward(self, module: str) -> None:
        """Check a module before it runs backward: none of its parameters may have a gradient yet.

        Raises:
            CutError: if a parameter has one; names the parameter.
        """
        for name, p in self._by_module[module]:
            if p.grad is not None:
                raise self._stray(name, p)

    def check_after_step(self) -> None:
        """Check all parameters at the end of a step: every gradient must have been used.

        Raises:
            CutError: if a parameter still has a gradient; names the parameter.
        """
        for name, p in self._named:
            if p.grad is not None:
                raise self._stray(name, p)
        for name, p in self._rules:
            if p.grad is not None:
                raise self._stray(name, p)

    def check_loss(self, loss: Tensor, outputs: Sequence[Tensor]) -> None:
        """Check a criterion's loss before anything learns from it.

        Args:
            loss: the loss.
            outputs: the tensors in the network's output.

        Raises:
            CutError: if the loss depends on a parameter of a module below the last one, other than through
                the output.
        """
        if not loss.requires_grad and any(t.requires_grad for t in outputs):
            raise ConfigError(
                "the criterion returned a loss without a graph, from which nothing can learn; let it compute the loss of the "
                "output itself, without .detach(), .item() or torch.no_grad()"
            )
        last = next(reversed(self._by_module))
        own = {id(p) for _, p in self._by_module[last]}
        known = {id(p): n for n, p in (*self._named, *self._rules)}
        for variable in leaves_of(loss, outputs):
            if id(variable) in known and id(variable) not in own:
                raise self._elsewhere(known[id(variable)])

    def _stray(self, name: str, p: Tensor) -> CutError | ConfigError:
        p.grad = None
        is_here = self._module is None or self._owner.get(name) == self._module
        if is_here and name not in self._unowned and id(p) not in self._trained:
            return thawed_error(name)
        return self._elsewhere(name)

    def _elsewhere(self, name: str) -> CutError:
        if name in self._unowned:
            return CutError(
                f"parameter '{name}' was not reached by the example that decouple was given, and this batch has reached "
                "it: no module's optimizer has it; give decouple an example that reaches it (in training mode, if it "
                "is used there only)"
            )
        return stray_gradient_error(name, self._owner.get(name, "a rule"))


def check_loss_once(criterion: Criterion, net: Decoupled) -> Criterion:
    """Return a criterion that checks its first loss.

    It may depend on the network only through the network's output.

    PyTorch's own criteria are returned unchanged.
    """
    if (getattr(criterion, "__module__", None) or "").startswith("torch.nn"):
        return criterion
    return _CheckedCriterion(criterion, GradientWatch(net, ()))


class _CheckedCriterion:
    def __init__(self, criterion: Criterion, watch: GradientWatch) -> None:
        self._criterion = criterion
        self._watch: GradientWatch | None = watch

    def __call__(self, output: Any, target: Any) -> Tensor:
        loss = self._criterion(output, target)
        if self._watch is not None and not torch.compiler.is_compiling():
            self._watch.check_loss(loss, tensors_in(output))
            self._watch = None
        return loss


def thawed_error(name: str) -> ConfigError:
    """Return the error for a parameter that has a gradient and no optimizer."""
    return ConfigError(
        f"parameter '{name}' has a gradient, and is in no optimizer of this engine: it was frozen when the engine was "
        "made; make the engine while every parameter that will ever learn requires gradients, then freeze and thaw as "
        "you like, or make the engine anew"
    )


def stray_gradient_error(name: str, module: str) -> CutError:
    """Return the error for a gradient that has reached a parameter by another way than through the cuts."""
    return CutError(
        f"a gradient reached parameter '{name}' of module '{module}' by another way than through the cuts: the criterion "
        "has a term that does not depend on the network's output (a weight penalty, a loss that a module has left in an "
        "attribute), or in this batch a skip connection crosses a cut; give such terms as penalty=…, module by module, "
        "and cut where no connection crosses"
    )


def leaves_of(loss: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the leaves of autograd that a loss depends on, without those behind a network's outputs."""
    stops = {t.grad_fn for t in outputs if t.grad_fn is not None}
    found: list[Tensor] = []
    seen: set[object] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or node in stops:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)  # a node that accumulates into a leaf
        if isinstance(variable, Tensor):
            found.append(variable)
        waiting.extend(parent for parent, _ in node.next_functions)
    return found


def check_gradients_have_optimizers(
    named: Iterable[tuple[str, Tensor]], optimizers: Iterable[Optimizer]
) -> None:
    """Refuse a parameter that has a gradient and no optimizer, in engines that train all modules at once.

    Raises:
        ConfigError: if there is one; names the parameter.
    """
    trained = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    for name, p in named:
        if p.grad is not None and id(p) not in trained:
            p.grad = None
            raise thawed_error(name)


def explain_backward_error(module: str, error: RuntimeError) -> Exception:
    """Return the error to raise for an error in a module's backward pass."""
    if isinstance(error, CutError) or "backward through the graph a second time" not in str(error):
        return error
    return CutError(
        f"the backward pass of module '{module}' ran into the graph of a module that has learned already: in this batch "
        "a skip connection crosses a cut, or the loss has a term that does not depend on the network's output (such as one "
        "that a module has left in an attribute); cut where no connection crosses, and give such terms as penalty=…"
    )

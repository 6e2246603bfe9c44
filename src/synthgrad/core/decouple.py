"""`decouple` and `recouple`: put interfaces into any network, and take them out again."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .context import current
from .cut import PlainCrossing
from .errors import CutError
from .graph import Graph, trace
from .input_rule import InputRule
from .interface import Crossing, Frame, Interface
from .quality import Monitor
from .rule import Info, Rule
from .units import LossScale, Reduction, Units

__all__ = ["Decoupled", "decouple", "propose_cuts", "recouple"]


class Decoupled(nn.Module):
    """A network with interfaces at its cuts. Made by `decouple`.

    In training, with gradients enabled, every interface hands the module below it the credit of its
    rule in place of the true gradient. In ``eval()`` or under ``torch.no_grad()`` it is the plain
    network.

    Attributes:
        model: the plain network, hooked; its parameters are under ``model.`` in the state dict.
        rules: the rules, by name of interface with dots as underscores.
        inputs: the input rules, in the same way; empty without complete unlock.
        graph: the modules and interfaces, as found in the example batch.
        units: how the training loop's criterion reduces and scales.
        monitor: in the plain loop, measures the credits of every step; None to measure nothing.
        truths: in the plain loop, what rules learn from in the next step in place of what comes back, by
            interface, ``(B, ...)`` in per-example units; None for what comes back.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Mapping[str, Rule],
        graph: Graph,
        units: Units,
        inputs: Mapping[str, InputRule] | None = None,
    ) -> None:
        super().__init__()
        inputs = inputs or {}
        self.model = model
        self.rules = nn.ModuleDict({_slot(name): rule for name, rule in rules.items()})
        self.inputs = nn.ModuleDict({_slot(name): rule for name, rule in inputs.items()})
        self.graph = graph
        self.units = units
        self.monitor: Monitor | None = None
        self.truths: Mapping[str, Tensor] | None = None
        self._frame = Frame()
        self._interfaces = {
            name: Interface(name, rule, self._frame, copies=name in graph.copies, input_rule=inputs.get(name))
            for name, rule in rules.items()
        }
        for name, interface in self._interfaces.items():
            model.get_submodule(name).register_forward_hook(interface)

    @property
    def interfaces(self) -> Mapping[str, Interface]:
        """The interfaces by name, in the order of the forward pass."""
        return self._interfaces

    def forward(self, *args: Any, context: Tensor | None = None, **kwargs: Any) -> Any:
        """Run the network; ``context`` is the ``c`` of the rules, ``(B, ...)``.

        The keyword is always the rules': a model whose own forward has one of that name is given it by
        position.
        """
        if not (self.training and torch.is_grad_enabled()):
            return self.model(*args, **kwargs)
        info = current() or Info()
        info = Info(
            context=info.context if context is None else context,
            ids=info.ids,
            # A number that changes with every call would have every call compiled anew.
            step=None if torch.compiler.is_compiling() else info.step,
            inputs=args[0] if args and isinstance(args[0], Tensor) else None,
            receiver=info.receiver,
        )
        return self._run(PlainCrossing(self.units, self.monitor, self.truths), info, args, kwargs)

    @contextmanager
    def crossed_by(self, crossing: Crossing) -> Generator[None]:
        """Put an engine in charge of the cuts: inside this block, run ``net.model`` itself."""
        before = self._frame.crossing
        self._frame.crossing = crossing
        try:
            yield
        finally:
            self._frame.crossing = before

    def _run(self, crossing: Crossing, info: Info, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        frame = self._frame
        # Written out, not a context manager: torch.compile(fullgraph=True) traces this form.
        frame.info, frame.crossing = info, crossing
        try:
            return self.model(*args, **kwargs)
        finally:
            frame.info, frame.crossing = Info(), None


def _slot(name: str) -> str:
    return name.replace(".", "_")


def decouple(
    model: nn.Module,
    at: Sequence[str],
    rule: Rule | Mapping[str, Rule],
    example: Tensor | Sequence[Any] | Mapping[str, Any],
    *,
    reduction: Reduction = "mean",
    loss_scale: LossScale | None = None,
    inputs: InputRule | Mapping[str, InputRule] | None = None,
) -> Decoupled:
    """Cut a network into modules that learn without waiting for each other (DNI §2).

    Args:
        model: any network. It is copied, not changed.
        at: names of the submodules after which to cut, dotted for nested ones.
        rule: what credit the module below a cut gets; every cut receives a fresh copy. Or a rule for
            each name.
        example: one batch to learn the shapes from: a tensor, a sequence of positional arguments, or
            a mapping of keyword arguments. On the device and in the dtype of training.
        reduction: how the criterion reduces the losses of a batch: ``"mean"``, ``"sum"``, or a callable
            that takes ``h`` and returns the divisor.
        loss_scale: callable that returns the factor by which the loss is multiplied before
            ``backward`` (``scaler.get_scale``; ``lambda: 1 / accumulation_steps``).
        inputs: what a module above a cut is fed with in training, in place of what the module below makes
            (complete unlock, DNI §2): every cut receives a fresh copy. Or an input rule for some of the
            names. For engines; the plain training loop runs modules in order anyway.

    Returns:
        The decoupled network. ``net(x, context=y)`` in place of ``model(x)`` is all that a training
        loop changes.

    Raises:
        CutError: if a cut cannot be made (unknown name, a submodule called twice or never, a skip
            connection that crosses it, an output that is not one floating tensor).

    >>> import torch, synthgrad as sg
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
    >>> net = sg.decouple(model, at=["1"], rule=sg.SyntheticGradient(context=3), example=x)
    >>> torch.nn.functional.cross_entropy(net(x, context=y), y).backward()
    >>> net.model[0].weight.grad.abs().max().item()  # the first synthetic gradients are zero
    0.0
    """
    if isinstance(at, str):
        raise CutError(f"at={at!r}: expected a list of names, as in at=[{at!r}]")
    if isinstance(model, Decoupled):
        raise CutError("the model is decoupled already; recouple it first, or name all cuts at once")
    rules = dict(rule) if isinstance(rule, Mapping) else dict.fromkeys(at, rule)
    if set(rules) != set(at):
        raise CutError(f"rules are given for {sorted(rules)}, cuts for {sorted(at)}; give one for each cut")
    units = Units(reduction, loss_scale)
    model = copy.deepcopy(model)
    graph = trace(model, at, *_arguments(example))
    supplies = dict(inputs) if isinstance(inputs, Mapping) else dict.fromkeys(at, inputs)
    if unknown := set(supplies) - set(at):
        raise CutError(
            f"input rules are given for {sorted(unknown)}, where there is no cut; cuts are {sorted(at)}"
        )
    bound = {name: rules[name].bind(site) for name, site in graph.sites.items()}
    fed = {n: rule.bind(graph.sites[n]) for n, rule in supplies.items() if rule is not None}
    return Decoupled(model, bound, graph, units, fed).train(model.training)


def _arguments(example: Tensor | Sequence[Any] | Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    return tuple(example), {}


def recouple(net: Decoupled) -> nn.Module:
    """Return the plain model again, with the weights as trained; ``net`` is not changed.

    Raises:
        CutError: if ``net`` is not a decoupled network.
    """
    if not isinstance(net, Decoupled):
        raise CutError(f"recouple got a {type(net).__name__}, expected what synthgrad.decouple returned")
    # Interfaces refer to the whole network: they are not copied along, only parted from.
    memo: dict[int, Any] = {id(interface): None for interface in net.interfaces.values()}
    model = copy.deepcopy(net.model, memo)
    for name in net.interfaces:
        # torch removes a hook by its handle only, and handles do not survive a copy.
        hooks = model.get_submodule(name)._forward_hooks  # pyright: ignore[reportPrivateUsage]
        for key in [key for key, hook in hooks.items() if hook is None]:
            del hooks[key]
    return model


def propose_cuts(model: nn.Module, example: Tensor | Sequence[Any] | Mapping[str, Any]) -> list[str]:
    """Propose cuts: after every child with parameters, from the top level down, where one can be made.

    A network that is one container in another is opened until there are several children. The
    last module keeps the true gradient, so nothing is proposed after it.

    Raises:
        CutError: if no cut can be made at all.
    """
    args = _arguments(example)
    prefix, children = "", [(n, m) for n, m in model.named_children() if _learns(m)]
    while len(children) == 1 and list(children[0][1].children()):
        prefix += children[0][0] + "."
        children = [(n, m) for n, m in children[0][1].named_children() if _learns(m)]
    names: list[str] = []
    for name, _ in children:
        try:
            trace(model, [*names, prefix + name], *args)
        except CutError:
            continue
        names.append(prefix + name)
    if not names:
        raise CutError(
            f"no cut could be proposed for {type(model).__name__}: none of its children with parameters "
            "returns one floating tensor on the way to the output; name the cuts yourself"
        )
    return names


def _learns(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())

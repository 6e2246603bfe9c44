"""`decouple` and `recouple`: put interfaces into any network, and take them out again."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .audit import audit, is_due
from .context import current
from .copies import copied, refuse_lazy
from .cut import CUT_NODE, PlainCrossing
from .errors import ConfigError, ContextError, CutError
from .given import brief, cut_names, example_arguments, instance_of, mismatch
from .graph import OUTPUT, Graph, first_tensor, trace
from .input_rule import InputRule
from .instruments import Instruments
from .interface import Crossing, Frame, Interface
from .layout import Dim
from .outputs import tensors_in
from .proposals import propose
from .quality import Monitor
from .rule import Info, Rule
from .signature import with_signature_of_model
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
        example: the batch that it was cut with: positional and keyword arguments. Engines that take the network apart
            check their parts with it.
        instruments: look on in the plain loop: a monitor, a timeline.
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
        example: tuple[tuple[Any, ...], dict[str, Any]] = ((), {}),
    ) -> None:
        super().__init__()
        inputs = inputs or {}
        self.model = model
        self.rules = nn.ModuleDict({_slot(name): rule for name, rule in rules.items()})
        self.inputs = nn.ModuleDict({_slot(name): rule for name, rule in inputs.items()})
        self.graph = graph
        self.units = units
        self.example = example
        self.instruments = Instruments()
        self.truths: Mapping[str, Tensor] | None = None
        self._frame = Frame()
        self._forwards = 0  # of the plain loop, in training
        self._trained = False  # has it run with its cuts at work?
        self._interfaces = {
            name: Interface(
                name,
                rule,
                self._frame,
                copies=name in graph.copies,
                input_rule=inputs.get(name),
                slot=graph.slots.get(name),
                batch_dim=graph.layouts[name].batch_dim if name in graph.layouts else 0,
            )
            for name, rule in rules.items()
        }
        for name, interface in self._interfaces.items():
            model.get_submodule(name).register_forward_hook(interface)

    def _apply(self, fn: Any, recurse: bool = True) -> Decoupled:
        """Move the example along with the network, and what is known of the interfaces."""
        super()._apply(fn, recurse)
        with torch.no_grad():
            self.example = pytree.tree_map_only(Tensor, fn, self.example)
        like = next((p for p in self.model.parameters() if p.is_floating_point()), None)
        if like is not None:
            sites = {n: replace(s, dtype=like.dtype, device=like.device) for n, s in self.graph.sites.items()}
            self.graph = replace(self.graph, sites=sites)
        return self

    @property
    def interfaces(self) -> Mapping[str, Interface]:
        """The interfaces by name, in the order of the forward pass."""
        return self._interfaces

    @property
    def needs_output_error(self) -> bool:
        """Does a rule use the gradient of the network's output?"""
        return any(interface.rule.needs_output_error for interface in self._interfaces.values())

    @property
    def monitor(self) -> Monitor | None:
        """Measures the quality of credits in the plain training loop; None to measure nothing."""
        return self.instruments.monitor

    @monitor.setter
    def monitor(self, monitor: Monitor | None) -> None:
        self.instruments.monitor = monitor

    def __getattr__(self, name: str) -> Any:
        """Return what only the plain network has (its ``config``, say), as programs that are given a model expect."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name[:1] == "_" or "model" not in self._modules:
                raise
            return getattr(self.model, name)

    @with_signature_of_model
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *args: Any, context: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Run the network; ``context`` is the ``c`` of the rules, ``(B, ...)``.

        The keyword is always the rules': a model whose own forward has one of that name is given it by
        position. To `inspect.signature` it takes what the model takes, and ``context``.
        """
        if not (self.training and torch.is_grad_enabled()):
            return self._plain(args, kwargs)
        if context is not None and not isinstance(context, Tensor):
            raise ContextError(
                f"context={brief(context)}: expected a tensor with a row for each example; convert it by "
                "torch.as_tensor"
            )
        info = current() or Info()
        info = Info(
            context=info.context if context is None else context,
            ids=info.ids,
            # A number that changes with every call would have every call compiled anew.
            step=None if torch.compiler.is_compiling() else info.step,
            inputs=first_tensor(args, kwargs),
            receiver=info.receiver,
        )
        if torch.compiler.is_compiling():
            if self.needs_output_error:
                raise ConfigError(
                    "a rule needs the network's output error, for which a graph of the whole network has no place; compile "
                    "the network's modules (net.model[0].compile()), or leave out fullgraph=True"
                )
            return self._run(PlainCrossing(self.units, None, self.truths), info, args, kwargs)
        self.instruments.step = info.step or 0
        crossing = PlainCrossing(self.units, self.instruments, self.truths, self.graph)
        try:
            output = self._run(crossing, info, args, kwargs)
        except TypeError as error:  # most likely the context, given by position
            why = mismatch(self.model, args, kwargs)
            if why is None:
                raise
            raise ConfigError(f"the batch could not be run through the network: {why}") from error
        crossing.reached(OUTPUT)
        if self.needs_output_error:
            crossing.watch_output(output)
        return output

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a state as `torch.nn.Module` does.

        Raises:
            ConfigError: if it is that of the plain model.
        """
        given = set(state_dict)
        if given and not given & set(self.state_dict()) and given & set(self.model.state_dict()):
            raise ConfigError(
                "the state is that of the plain model, and a decoupled network has the model under 'model.' and its rules "
                "under 'rules.'; load it by net.model.load_state_dict(state)"
            )
        return super().load_state_dict(state_dict, strict, assign)

    @contextmanager
    def crossed_by(self, crossing: Crossing) -> Generator[None]:
        """Put an engine in charge of the cuts: inside this block, run ``net.model`` itself."""
        frame = self._frame
        before = frame.crossing, frame.crossed
        frame.crossing, frame.crossed = crossing, set()
        self._trained = True
        try:
            yield
        finally:
            frame.crossing, frame.crossed = before

    def check_crossed(self) -> None:
        """Refuse a pass of which an engine is in charge, at its end, if it has left a cut out.

        Raises:
            CutError: naming the cut.
        """
        self._frame.check_all_crossed(self._interfaces)

    def _plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the plain network; say so, once, if it looks as if it were to be trained."""
        output = self.model(*args, **kwargs)
        if self._trained or self.training or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return output
        for tensor in tensors_in(output):
            if tensor.requires_grad:
                tensor.register_hook(self._warn_of_eval)
        return output

    def _warn_of_eval(self, gradient: Tensor) -> None:
        """Say, once, that a backward pass has begun that trains the plain network."""
        if self._trained:
            return
        self._trained = True
        warnings.warn(
            "the decoupled network is in evaluation mode, as from_pretrained leaves a model: it is the plain network, and "
            "this loss trains it by backpropagation, without its rules; call net.train() to train it decoupled",
            stacklevel=2,
        )

    def _run(self, crossing: Crossing, info: Info, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        frame = self._frame
        # Written out, not a context manager: torch.compile(fullgraph=True) traces this form.
        frame.info, frame.crossing = info, crossing
        if not torch.compiler.is_compiling():
            self._trained = frame.learns = True
            frame.crossed = set()
            # The casts of weights that an autocast around the whole loop keeps are those of the first step.
            torch.clear_autocast_cache()
        try:
            output = self.model(*args, **kwargs)
        finally:
            frame.info, frame.crossing = Info(), None
        if not torch.compiler.is_compiling():
            frame.check_all_crossed(self._interfaces)
            self._forwards += 1
            if is_due(self._forwards):
                audit(self.model, self.graph.modules, tensors_in(output), CUT_NODE)
        return output


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
    batch_dim: Dim = None,
    features_dim: Dim = None,
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
        batch_dim: which dimension of a message is the batch: a number for all cuts, or one for some names. None to find
            out, by running the example with one example more: 1 for ``(T, B, F)``. Rules see the batch first.
        features_dim: which dimension of a message holds the features (channels), counted in the message as it is; a
            number, or one for some names. None to find out from the layers below the cut: 1 after a convolution, the
            last after a linear layer.

    Returns:
        The decoupled network. ``net(x, context=y)`` in place of ``model(x)`` is all that a training
        loop changes.

    Raises:
        CutError: if a cut cannot be made (unknown name, a submodule called twice or never, a skip
            connection that crosses it, an output without just one floating tensor that a gradient flows through, a
            part under activation checkpointing, a lazy module), or the example does not fit the model.
        ConfigError: if a rule is no `Rule` (its class, say), or another setting is out of its range.

    >>> import torch, synthgrad as sg
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
    >>> net = sg.decouple(model, at=["1"], rule=sg.SyntheticGradient(context=3), example=x)
    >>> torch.nn.functional.cross_entropy(net(x, context=y), y).backward()
    >>> net.model[0].weight.grad.abs().max().item()  # the first synthetic gradients are zero
    0.0
    """
    if isinstance(model, Decoupled):
        raise CutError("the model is decoupled already; recouple it first, or name all cuts at once")
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise CutError(
            f"got {what} as model, expected a torch.nn.Module; {'call it first' if callable(model) else 'give one'}"
        )
    at = cut_names(model, at)
    rules = dict(rule) if isinstance(rule, Mapping) else dict.fromkeys(at, rule)
    if set(rules) != set(at):
        raise CutError(f"rules are given for {sorted(rules)}, cuts for {sorted(at)}; give one for each cut")
    for given in rules.values():
        instance_of(Rule, given, "rule", "synthgrad.SyntheticGradient(...)")
    units = Units(reduction, loss_scale)
    args, kwargs = example_arguments(example)
    supplies = dict(inputs) if isinstance(inputs, Mapping) else dict.fromkeys(at, inputs)
    if unknown := set(supplies) - set(at):
        raise CutError(
            f"input rules are given for {sorted(unknown)}, where there is no cut; cuts are {sorted(at)}"
        )
    for supply in supplies.values():
        if supply is not None:
            instance_of(InputRule, supply, "inputs", "synthgrad.SyntheticInput(...)")
    refuse_lazy(model)
    model = copied(model)
    graph = trace(model, at, args, kwargs, batch_dim=batch_dim, features_dim=features_dim)
    bound = {name: rules[name].bind(site) for name, site in graph.sites.items()}
    fed = {n: rule.bind(graph.sites[n]) for n, rule in supplies.items() if rule is not None}
    kept = pytree.tree_map_only(
        Tensor, Tensor.detach, (args, kwargs)
    )  # a form for batches; it has no history
    net = Decoupled(model, bound, graph, units, fed, kept)
    # Not net.train(): it would put parts into training mode that were frozen with eval().
    net.training = model.training
    net.rules.train(model.training)
    net.inputs.train(model.training)
    return net


def recouple(net: Decoupled) -> nn.Module:
    """Return the plain model again, with the weights as trained; ``net`` is not changed.

    Raises:
        CutError: if ``net`` is not a decoupled network.
    """
    if not isinstance(net, Decoupled):
        raise CutError(f"recouple got a {type(net).__name__}, expected what synthgrad.decouple returned")
    # Interfaces refer to the whole network: they are not copied along, only parted from.
    memo: dict[int, Any] = {id(interface): None for interface in net.interfaces.values()}
    model = copied(net.model, memo)
    for name in net.interfaces:
        # torch removes a hook by its handle only, and handles do not survive a copy.
        hooks = model.get_submodule(name)._forward_hooks  # pyright: ignore[reportPrivateUsage]
        for key in [key for key, hook in hooks.items() if hook is None]:
            del hooks[key]
    return model


def propose_cuts(model: nn.Module, example: Tensor | Sequence[Any] | Mapping[str, Any]) -> list[str]:
    """Propose cuts, in the order of the forward pass: after each block of a network that has lists of equal blocks.

    Layers of Transformers, residual blocks: containers are opened at whatever level these are, and of blocks within
    blocks the innermost are taken that can be cut apart. Another network is cut after its children with parameters, from the
    top level down, one container in another being opened. The last module keeps the true gradient, so nothing is
    proposed after it.

    What is proposed is possible, not wise: each cut costs a rule and some accuracy, so take every second or third.

    Args:
        model: any network.
        example: one batch, as `decouple` takes it.

    Raises:
        CutError: if no cut can be made at all.

    >>> import torch
    >>> block = lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    >>> propose_cuts(torch.nn.Sequential(block(), block(), torch.nn.Linear(4, 2)), torch.ones(8, 4))
    ['0', '1']
    """
    names = propose(model, *example_arguments(example))
    if not names:
        raise CutError(
            f"no cut could be proposed for {type(model).__name__}: none of its children with parameters, and no block in "
            "a list, returns one floating tensor on which all above it depends; name the cuts yourself"
        )
    return names

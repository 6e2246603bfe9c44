"""The decoupled network: the plain one with interfaces at its cuts, and the rules that sit there."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .audit import Idle, audit, is_due
from .context import current
from .cut import CUT_NODE, PlainCrossing
from .errors import ConfigError, ContextError
from .given import brief, mismatch
from .graph import OUTPUT, Graph, first_tensor
from .input_rule import InputRule
from .instruments import Instruments
from .interface import Crossing, Frame, Interface
from .outputs import tensors_in
from .quality import Monitor
from .rule import Info, Rule
from .signature import with_signature_of_model
from .tokens import explain_failure, explained
from .units import Units

if TYPE_CHECKING:  # at run time, before Python 3.13, a variable of types has no default
    from typing_extensions import TypeVar

    M_co = TypeVar("M_co", bound=nn.Module, default=nn.Module, covariant=True)
else:
    from typing import TypeVar

    M_co = TypeVar("M_co", bound=nn.Module, covariant=True)

__all__ = ["Decoupled", "decoupled_class"]


class Decoupled(nn.Module, Generic[M_co]):
    """A network with interfaces at its cuts. Made by `decouple`.

    In training, with gradients enabled, every interface hands the module below it the credit of its
    rule in place of the true gradient. In ``eval()`` or under ``torch.no_grad()`` it is the plain
    network.

    To programs that look at a model's class it is one like it: `decouple` makes a subclass with the name of the model's
    class and the signature of its ``forward``. What it has not itself (``config``, ``generate``, ``save_pretrained``) is
    looked up in the model.

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
        criterion_target: in the plain loop, the target of the next step's batch, where its tokens are to be counted and neither
            model nor rules are given labels; None where they are.
    """

    def __init__(
        self,
        model: M_co,
        rules: Mapping[str, Rule],
        graph: Graph,
        units: Units,
        inputs: Mapping[str, InputRule] | None = None,
        example: tuple[tuple[Any, ...], dict[str, Any]] = ((), {}),
    ) -> None:
        super().__init__()
        inputs = inputs or {}
        self.model: M_co = model
        self.rules = nn.ModuleDict({_slot(name): rule for name, rule in rules.items()})
        self.inputs = nn.ModuleDict({_slot(name): rule for name, rule in inputs.items()})
        self.graph = graph
        self.units = units
        self.example = example
        self.instruments = Instruments()
        self.truths: Mapping[str, Tensor] | None = None
        self.criterion_target: Any = None
        self._frame = Frame()
        self._forwards = 0  # of the plain loop, in training
        self._idle = Idle()
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

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made for the model's: a file says how to make it again, not where it lies.
        return _empty, (type(self.model),), self.__getstate__()

    def extra_repr(self) -> str:
        return f"decoupled after {', '.join(map(repr, self._interfaces))}"

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
        self.instruments.monitor = Instruments(monitor=monitor).monitor  # which looks at what it is

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
            units = self.units.of_batch(kwargs, info.context, self.criterion_target)
            return self._run(PlainCrossing(units, None, self.truths), info, args, kwargs)
        self.instruments.step = info.step or 0
        units = self.units.of_batch(kwargs, info.context, self.criterion_target)
        crossing = PlainCrossing(units, self.instruments, self.truths, self.graph)
        try:
            output = self._run(crossing, info, args, kwargs)
        except TypeError as error:  # most likely the context, given by position
            why = mismatch(self.model, args, kwargs)
            if why is None:
                raise
            raise ConfigError(f"the batch could not be run through the network: {why}") from error
        except (IndexError, ValueError, RuntimeError) as error:
            found = explain_failure(error, self.model)
            if found is None:
                raise
            raise found from error
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
        """Put an engine in charge of the cuts: inside this block, run ``net.model`` itself, and the criterion.

        Raises:
            ConfigError, ContextError, ShapeError: for token ids or labels that do not fit, see `tokens.explained`.
        """
        frame = self._frame
        before = frame.crossing, frame.crossed
        frame.crossing, frame.crossed = crossing, set()
        self._trained = True
        try:
            with explained(self.model):
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
            if self._idle.is_due(self._forwards):
                floating = [p for p in self.model.parameters() if p.is_floating_point()]
                self._idle.look({"the network": floating, "the rules": list(self.rules.parameters())})
            if is_due(self._forwards):
                audit(self.model, self.graph.modules, tensors_in(output), CUT_NODE)
        return output


def _slot(name: str) -> str:
    return name.replace(".", "_")


_CLASSES: dict[type[nn.Module], type[Decoupled]] = {}


def decoupled_class(model: type[nn.Module]) -> type[Decoupled]:
    """Return the class of decoupled networks of a model's class: one of its name, whose ``forward`` takes what it takes."""
    found = _CLASSES.get(model)
    if found is None:
        own = {"model_class": model, "__module__": Decoupled.__module__, "__doc__": Decoupled.__doc__}
        found = _CLASSES[model] = type(model.__name__, (Decoupled,), own)
    return found


def _empty(model: type[nn.Module]) -> Decoupled:
    """Return a network of the right class, to be filled with the state of another."""
    kind = decoupled_class(model)
    return kind.__new__(kind)

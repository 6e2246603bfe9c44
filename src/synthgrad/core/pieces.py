"""The pieces of a network's graph between the cuts: what one example, run with a new leaf at each cut, falls into."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .copies import copied
from .errors import CutError
from .given import mismatch
from .outputs import Slot, find_slot, message_in, tensors_in, with_message

__all__ = ["OUTPUT", "Module", "Probe", "pieces"]

#: The name of the end of the last module, where the true gradient comes from.
OUTPUT = "output"


@dataclass(frozen=True, slots=True)
class Module:
    """A piece of the network that learns as one.

    Attributes:
        ends: the interfaces at which it ends; ``("output",)`` for the last one.
        inputs: the interfaces that feed it.
        parameters: names of its parameters, as in the plain model.
        hides_parameters: it runs a part under reentrant activation checkpointing, whose parameters do not
            show in the graph.
    """

    ends: tuple[str, ...]
    inputs: tuple[str, ...]
    parameters: tuple[str, ...]
    hides_parameters: bool = False

    @property
    def name(self) -> str:
        """Name of the module: the interfaces at which it ends, joined by ``+``."""
        return "+".join(self.ends)


@dataclass
class _Piece:
    """The graph behind one end: its nodes, the parameters and the cuts that it reaches."""

    ends: list[str]
    nodes: set[Any] = field(default_factory=set[Any])
    parameters: set[str] = field(default_factory=set[str])
    inputs: set[str] = field(default_factory=set[str])
    hides: bool = False


class Probe:
    """Forward hook that ends one piece of the graph at a cut and starts the next from a new leaf."""

    def __init__(self, name: str, record: dict[str, Probe]) -> None:
        self.name, self.record = name, record
        self.calls = 0
        self.slot: Slot = None
        self.h: Tensor
        self.fed: Tensor
        self.start: Any

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        self.calls += 1
        if _inside_checkpoint():
            raise CutError(
                f"cannot cut after '{self.name}': it runs under activation checkpointing, which would run the cut once "
                "more in the backward pass; checkpoint parts that lie between two cuts, or cut elsewhere"
            )
        if self.calls > 1:
            raise CutError(
                f"cannot cut after '{self.name}': it runs more than once in a forward pass, so it has "
                "more than one message; cut after a module around it that runs once"
            )
        self.slot = find_slot(self.name, output)
        self.record[self.name] = self  # in the order of the forward pass
        self.h = message_in(self.name, output, self.slot)
        # Not the leaf itself: a module above may change its input in place, which a leaf refuses.
        self.fed = self.h.detach().requires_grad_().clone()
        self.start = self.fed.grad_fn  # the node at which the pieces above begin
        return with_message(output, self.slot, self.fed)


def pieces(
    model: nn.Module, names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, Probe], tuple[Module, ...], list[Tensor]]:
    """Run the example through a copy; return what was met, the modules, and the tensors of the output, detached."""
    twin = copied(model)
    for p in twin.parameters():
        if p.is_floating_point():
            p.requires_grad_()  # a frozen parameter still belongs to a module: it may thaw later
    met: dict[str, Probe] = {}
    probes = {name: Probe(name, met) for name in names}
    handles = [twin.get_submodule(n).register_forward_hook(probe) for n, probe in probes.items()]
    try:
        with torch.enable_grad(), _saving_nothing():
            output = twin(*args, **kwargs)
    except CutError:
        raise
    except Exception as error:
        why = mismatch(twin, args, kwargs)
        if why is not None:
            raise CutError(f"the example could not be run through the model: {why}") from error
        error.add_note("raised while synthgrad.decouple ran the example batch through the model")
        raise
    finally:
        for handle in handles:
            handle.remove()
    never = [n for n in names if not probes[n].calls]
    if never:
        raise CutError(
            f"cannot cut after '{never[0]}': it never runs in the forward pass of the example; "
            "cut after a submodule that does, or give an example that reaches it"
        )
    roots: dict[str, list[Tensor]] = {name: [probe.h] for name, probe in met.items()}
    roots[OUTPUT] = tensors_in(output)
    parameters = {id(p): n for n, p in twin.named_parameters()}
    modules = _modules(roots, {p.start: n for n, p in met.items()}, parameters)
    _check_consumers(modules, met, roots[OUTPUT])
    return met, modules, [t.detach().requires_grad_(t.requires_grad) for t in roots[OUTPUT]]


def _saving_nothing() -> torch.autograd.graph.saved_tensors_hooks:
    """Drop what the graph would save for a backward pass: only its shape is read."""

    def refuse(nothing: None) -> Tensor:
        raise AssertionError("the trace runs no backward pass")

    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, refuse)


def _inside_checkpoint() -> bool:
    """Is a function of torch.utils.checkpoint on the stack?"""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            return True
        frame = frame.f_back
    return False


def _modules(
    roots: dict[str, list[Tensor]], starts: dict[Any, str], parameters: dict[int, str]
) -> tuple[Module, ...]:
    """Walk the graph behind every end, and join the ends that share a part of it."""
    found: list[_Piece] = []
    for end, tensors in roots.items():
        piece = _walk(end, tensors, starts, parameters)
        # Two ends that share a node of the graph learn as one: neither can be updated without the other.
        for other in [p for p in found if p.nodes & piece.nodes]:
            found.remove(other)
            piece = _Piece(
                other.ends + piece.ends,
                other.nodes | piece.nodes,
                other.parameters | piece.parameters,
                other.inputs | piece.inputs,
                other.hides or piece.hides,
            )
        found.append(piece)
    order = list(roots)
    modules = tuple(
        Module(
            ends=tuple(p.ends),
            inputs=tuple(n for n in order if n in p.inputs),
            parameters=tuple(n for n in parameters.values() if n in p.parameters),
            hides_parameters=p.hides,
        )
        for p in sorted(found, key=lambda p: max(order.index(e) for e in p.ends))
    )
    _check_crossings(modules)
    return modules


def _walk(end: str, tensors: list[Tensor], starts: dict[Any, str], parameters: dict[int, str]) -> _Piece:
    piece = _Piece([end])
    stack: list[Any] = [t.grad_fn for t in tensors if t.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node is None or node in piece.nodes:
            continue
        if node in starts:
            piece.inputs.add(starts[node])
            continue
        variable = getattr(node, "variable", None)  # a node that accumulates into a leaf
        if variable is not None:
            if id(variable) in parameters:
                piece.parameters.add(parameters[id(variable)])
            continue
        piece.nodes.add(node)
        piece.hides |= node.name().startswith("CheckpointFunction")
        stack.extend(parent for parent, _ in node.next_functions)
    return piece


def _check_crossings(modules: tuple[Module, ...]) -> None:
    """Refuse a module that an interface leads both out of and back into."""
    producer = {end: k for k, m in enumerate(modules) for end in m.ends}
    for k, module in enumerate(modules):
        for name in module.inputs:
            # Modules are sorted by when they finish, so what feeds one must have finished before it.
            if producer[name] >= k:
                raise CutError(
                    f"cannot cut after '{name}': a skip connection crosses the cut (the part of the network "
                    f"that ends in {' and '.join(repr(e) for e in module.ends)} uses a tensor from below "
                    f"'{name}' that does not pass through it); cut where the skip connection begins or "
                    "where it has joined again"
                )


def _check_consumers(modules: tuple[Module, ...], met: Mapping[str, Probe], outputs: list[Tensor]) -> None:
    used = {name for m in modules for name in m.inputs}
    for name, probe in met.items():
        if any(t is probe.fed for t in outputs):
            raise CutError(
                f"cannot cut after '{name}': its output is the output of the network, where the true "
                "gradient is at hand; cut before the last module"
            )
        if name not in used:
            raise CutError(
                f"cannot cut after '{name}': no gradient flows back to it from the output, so there is no "
                "message to learn from; cut after a submodule that the output depends on"
            )

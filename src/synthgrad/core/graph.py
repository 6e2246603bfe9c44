"""What lies between the cuts: finds the modules of a network by running it once and reading its graph.

The example batch runs through a copy of the network in which every cut hands on a new leaf. The
autograd graph then falls apart into pieces that touch only at these leaves. A piece is a *module* in
the sense of the papers: it ends in one or more cuts (or in the output) and is fed by others. A piece
that both ends in a cut and is fed by it is a skip connection across that cut.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .copies import copied, refuse_lazy
from .errors import CutError
from .layout import Dim, Layout, Met, find_layouts
from .outputs import Slot, find_slot, message_in, tensors_in, with_message
from .owners import owners
from .site import Site

__all__ = ["OUTPUT", "Graph", "Module", "first_tensor", "trace"]

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


@dataclass(frozen=True, slots=True)
class Graph:
    """The decoupled graph: modules, and the interfaces between them, in the order of the forward pass.

    Attributes:
        modules: in the order in which they finish; the one that ends in the output is last.
        sites: what the example was like at each interface.
        copies: interfaces above which a module changes its input in place.
        layouts: which dimensions of each message are what.
        slots: where each message is in what its submodule returns.
        unowned: parameters that the example did not reach, and of which nothing tells to which module they belong.
    """

    modules: tuple[Module, ...]
    sites: Mapping[str, Site]
    copies: frozenset[str]
    layouts: Mapping[str, Layout] = field(default_factory=dict[str, Layout])
    slots: Mapping[str, Slot] = field(default_factory=dict[str, Slot])
    unowned: tuple[str, ...] = ()

    @property
    def is_chain(self) -> bool:
        """Is every module fed by exactly the one before it?"""
        ends = [m.ends for m in self.modules]
        return all(
            m.inputs == (ends[k - 1] if k else ()) and len(m.ends) == 1 for k, m in enumerate(self.modules)
        )

    def consumers(self, interface: str) -> tuple[int, ...]:
        """Return the positions in `modules` of those that this interface feeds."""
        return tuple(k for k, m in enumerate(self.modules) if interface in m.inputs)


@dataclass
class _Piece:
    """The graph behind one end: its nodes, the parameters and the cuts that it reaches."""

    ends: list[str]
    nodes: set[Any] = field(default_factory=set[Any])
    parameters: set[str] = field(default_factory=set[str])
    inputs: set[str] = field(default_factory=set[str])
    hides: bool = False


class _Probe:
    """Forward hook that ends one piece of the graph at a cut and starts the next from a new leaf."""

    def __init__(self, name: str, record: dict[str, _Probe]) -> None:
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


def trace(
    model: nn.Module,
    names: Sequence[str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    batch_dim: Dim = None,
    features_dim: Dim = None,
) -> Graph:
    """Find the modules of ``model`` between the cuts after the submodules ``names``.

    Args:
        model: any network; it is neither changed nor kept.
        names: dotted names of submodules.
        args: positional arguments of the forward pass, one batch.
        kwargs: keyword arguments of it.
        batch_dim, features_dim: which dimension of messages is the batch, and which holds the features, for all cuts
            or by name; None to find out.

    Raises:
        CutError: if a cut cannot be made; says which and why.
    """
    _check_names(model, names)
    refuse_lazy(model)
    devices = _devices(model)
    with torch.random.fork_rng(devices):
        met, modules, reached = _pieces(model, names, args, kwargs)
        layouts = find_layouts(
            model, {n: Met(tuple(p.h.shape), p.slot) for n, p in met.items()}, args, kwargs, batch_dim, features_dim
        )
        if len(reached) < _num_floating(model) and not model.training:
            modules = _with_training_mode(model, names, args, kwargs, modules)
    modules, unowned = _with_unreached(model, modules)
    # Under autocast h may be of another type than the parameters, which is what a rule goes by.
    dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
    first = first_tensor(args, kwargs)

    def site(name: str, probe: _Probe) -> Site:
        shape = list(probe.h.shape)
        shape.insert(0, shape.pop(layouts[name].batch_dim))
        return Site(
            name,
            tuple(shape),
            (dtypes or [probe.h.dtype])[0],
            probe.h.device,
            model.get_submodule(name),
            None if first is None else tuple(first.shape),
            features_dim=layouts[name].features_dim,
        )

    return Graph(
        modules=modules,
        sites={n: site(n, p) for n, p in met.items()},
        copies=frozenset(n for n, p in met.items() if p.fed._version),
        layouts=layouts,
        slots={n: p.slot for n, p in met.items()},
        unowned=unowned,
    )


def first_tensor(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the first input of a network: its first argument, or the first keyword that is a tensor."""
    if args:
        return args[0] if isinstance(args[0], Tensor) else None
    return next((value for value in kwargs.values() if isinstance(value, Tensor)), None)


def _num_floating(model: nn.Module) -> int:
    return sum(p.is_floating_point() for p in model.parameters())


def _with_training_mode(
    model: nn.Module,
    names: Sequence[str],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    modules: tuple[Module, ...],
) -> tuple[Module, ...]:
    """Add the parameters that the example reaches in training mode only (an auxiliary head, say)."""
    try:
        _, others, _ = _pieces(copied(model).train(), names, args, kwargs)
    except Exception:  # what does not run in training mode tells nothing
        return modules
    known = {n for m in modules for n in m.parameters}
    more = {m.ends: [n for n in m.parameters if n not in known] for m in others}
    return tuple(replace(m, parameters=(*m.parameters, *more.get(m.ends, ()))) for m in modules)


def _with_unreached(
    model: nn.Module, modules: tuple[Module, ...]
) -> tuple[tuple[Module, ...], tuple[str, ...]]:
    """Give the parameters that the example did not reach to the modules whose submodules they are."""
    names = [n for n, p in model.named_parameters() if p.is_floating_point()]
    of: dict[str, int] = {}
    for k, module in enumerate(modules):
        of |= dict.fromkeys(module.parameters, k)
    found, unowned = owners(names, of)
    own = [{*m.parameters, *(n for n, k in found.items() if k == j)} for j, m in enumerate(modules)]
    return (
        tuple(
            replace(m, parameters=tuple(n for n in names if n in some))
            for m, some in zip(modules, own, strict=True)
        ),
        unowned,
    )


def _inside_checkpoint() -> bool:
    """Is a function of torch.utils.checkpoint on the stack?"""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            return True
        frame = frame.f_back
    return False


def _pieces(
    model: nn.Module, names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[dict[str, _Probe], tuple[Module, ...], set[str]]:
    """Run the example through a copy; return what was met, the modules, and the parameters that were reached."""
    twin = copied(model)
    for p in twin.parameters():
        if p.is_floating_point():
            p.requires_grad_()  # a frozen parameter still belongs to a module: it may thaw later
    met: dict[str, _Probe] = {}
    probes = {name: _Probe(name, met) for name in names}
    handles = [twin.get_submodule(n).register_forward_hook(probe) for n, probe in probes.items()]
    try:
        with torch.enable_grad(), _saving_nothing():
            output = twin(*args, **kwargs)
    except CutError:
        raise
    except Exception as error:
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
    return met, modules, {n for m in modules for n in m.parameters}


def _saving_nothing() -> torch.autograd.graph.saved_tensors_hooks:
    """Drop what the graph would save for a backward pass: only its shape is read."""

    def refuse(nothing: None) -> Tensor:
        raise AssertionError("the trace runs no backward pass")

    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: None, refuse)


def _check_names(model: nn.Module, names: Sequence[str]) -> None:
    known = {n for n, _ in model.named_modules() if n}
    for name in names:
        if name not in known:
            some = ", ".join(sorted(known)[:12]) or "none"
            raise CutError(
                f"cannot cut after '{name}': the model has no submodule of that name; it has: {some}"
                + (" …" if len(known) > 12 else "")
            )
    if len(set(names)) != len(names):
        raise CutError(f"cuts {list(names)}: a name is given twice; give each once")
    if not names:
        raise CutError("no cut was given: name at least one submodule after which to cut, as in at=['0']")
    slots = [n.replace(".", "_") for n in names]
    if len(set(slots)) != len(slots):
        raise CutError(
            f"cuts {list(names)}: two names are the same when dots become underscores, which is how their "
            "rules are stored; rename a submodule"
        )


def _devices(model: nn.Module) -> list[int]:
    """Return the CUDA devices whose random state the trace must leave alone."""
    return sorted({p.device.index for p in model.parameters() if p.is_cuda})


def _modules(
    roots: dict[str, list[Tensor]], starts: dict[Any, str], parameters: dict[int, str]
) -> tuple[Module, ...]:
    """Walk the graph behind every end, and join the ends that share a part of it."""
    pieces: list[_Piece] = []
    for end, tensors in roots.items():
        piece = _walk(end, tensors, starts, parameters)
        # Two ends that share a node of the graph learn as one: neither can be updated without the other.
        for other in [p for p in pieces if p.nodes & piece.nodes]:
            pieces.remove(other)
            piece = _Piece(
                other.ends + piece.ends,
                other.nodes | piece.nodes,
                other.parameters | piece.parameters,
                other.inputs | piece.inputs,
                other.hides or piece.hides,
            )
        pieces.append(piece)
    order = list(roots)
    modules = tuple(
        Module(
            ends=tuple(p.ends),
            inputs=tuple(n for n in order if n in p.inputs),
            parameters=tuple(n for n in parameters.values() if n in p.parameters),
            hides_parameters=p.hides,
        )
        for p in sorted(pieces, key=lambda p: max(order.index(e) for e in p.ends))
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


def _check_consumers(modules: tuple[Module, ...], met: Mapping[str, _Probe], outputs: list[Tensor]) -> None:
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

"""What lies between the cuts: finds the modules of a network by running it once and reading its graph.

The example batch runs through a copy of the network in which every cut hands on a new leaf. The
autograd graph then falls apart into pieces that touch only at these leaves. A piece is a *module* in
the sense of the papers: it ends in one or more cuts (or in the output) and is fed by others. A piece
that both ends in a cut and is fed by it is a skip connection across that cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .copies import copied, refuse_lazy
from .devices import cuda_devices
from .errors import CutError
from .given import similar
from .layout import Dim, Layout, Met, find_layouts
from .outputs import Slot
from .owners import owners
from .pieces import OUTPUT, Module, Probe, pieces
from .site import Site

__all__ = ["OUTPUT", "Graph", "Module", "first_tensor", "trace"]


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
        outputs: shape and dtype of the tensors in the network's output that a gradient flows through.
    """

    modules: tuple[Module, ...]
    sites: Mapping[str, Site]
    copies: frozenset[str]
    layouts: Mapping[str, Layout] = field(default_factory=dict[str, Layout])
    slots: Mapping[str, Slot] = field(default_factory=dict[str, Slot])
    unowned: tuple[str, ...] = ()
    outputs: tuple[tuple[tuple[int, ...], torch.dtype], ...] = ()

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
        model: any network; it is not changed. The sites refer to it.
        names: dotted names of submodules.
        args: positional arguments of the forward pass, one batch.
        kwargs: keyword arguments of it.
        batch_dim: which dimension of messages is the batch, for all cuts or by name; None to find out.
        features_dim: which dimension holds the features, in the same way.

    Raises:
        CutError: if a cut cannot be made; says which and why.
    """
    _check_names(model, names)
    refuse_lazy(model)
    with torch.random.fork_rng(cuda_devices(model)):
        met, modules, outputs = pieces(model, names, args, kwargs)
        layouts = find_layouts(
            model,
            {n: Met(tuple(p.h.shape), p.slot) for n, p in met.items()},
            args,
            kwargs,
            batch_dim,
            features_dim,
        )
        reached = {n for m in modules for n in m.parameters}
        if len(reached) < _num_floating(model) and not model.training:
            modules = _with_training_mode(model, names, args, kwargs, modules)
    modules, unowned = _with_unreached(model, modules)
    # Under autocast h may be of another type than the parameters, which is what a rule goes by.
    dtypes = [p.dtype for p in model.parameters() if p.is_floating_point()]
    first = first_tensor(args, kwargs)

    def site(name: str, probe: Probe) -> Site:
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
            network=model,
        )

    return Graph(
        modules=modules,
        sites={n: site(n, p) for n, p in met.items()},
        copies=frozenset(n for n, p in met.items() if p.fed._version),
        layouts=layouts,
        slots={n: p.slot for n, p in met.items()},
        unowned=unowned,
        outputs=tuple((tuple(t.shape), t.dtype) for t in outputs if t.requires_grad),
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
        _, others, _ = pieces(copied(model).train(), names, args, kwargs)
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


def _check_names(model: nn.Module, names: Sequence[str]) -> None:
    known = {n for n, _ in model.named_modules() if n}
    for name in names:
        if name not in known:
            some = ", ".join(sorted(known)[:12]) or "none"
            raise CutError(
                f"cannot cut after '{name}': the model has no submodule of that name{similar(name, known)}; it has: {some}"
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

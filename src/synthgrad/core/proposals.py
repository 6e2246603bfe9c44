"""Where a network can be cut: finds its blocks, and which of them hand on one message and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .copies import copied, refuse_lazy
from .devices import cuda_devices
from .errors import CutError
from .graph import trace
from .outputs import find_slot, message_in, tensors_in

__all__ = ["propose"]

_LISTS = nn.ModuleList | nn.ModuleDict
_CONTAINERS = nn.ModuleList | nn.ModuleDict | nn.Sequential


def propose(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Return names of submodules after which the network can be cut, in the order of the forward pass.

    The members of lists of equal blocks (the layers of a Transformer, the residual blocks of a ResNet), at whatever level
    they are; of lists within lists, the innermost whose members can be cut apart. A network without such lists is cut
    after its children with parameters, from the top level down.

    Args:
        model: any network; a copy is run once.
        args: positional arguments of one batch.
        kwargs: keyword arguments of it.

    Returns:
        The names; an empty list if no cut can be made.
    """
    refuse_lazy(model)
    order = _separating(model, args, dict(kwargs))
    prefix, children = _top(model)
    found = _blocks(model, order, prefix)
    if found and _fit_together(model, found, args, kwargs):
        return found
    names: list[str] = []
    for name in _opened(prefix, children):
        if _fit_together(model, [*names, name], args, kwargs):
            names.append(name)
    return names


def _top(model: nn.Module) -> tuple[str, list[tuple[str, nn.Module]]]:
    """Return the children with parameters, and what their names begin with: a lone container is opened."""
    prefix, children = "", [(n, m) for n, m in model.named_children() if _learns(m)]
    while len(children) == 1 and list(children[0][1].children()):
        prefix += children[0][0] + "."
        children = [(n, m) for n, m in children[0][1].named_children() if _learns(m)]
    return prefix, children


def _opened(prefix: str, children: Sequence[tuple[str, nn.Module]]) -> list[str]:
    """Return the names of the children; lists, which have no forward of their own, are opened."""
    names: list[str] = []
    for name, child in children:
        if isinstance(child, _LISTS):
            inner = [(n, m) for n, m in child.named_children() if _learns(m)]
            names += _opened(f"{prefix}{name}.", inner)
        else:
            names.append(prefix + name)
    return names


def _learns(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _fit_together(
    model: nn.Module, names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    try:
        trace(model, names, args, dict(kwargs), batch_dim=0, features_dim=-1)
    except CutError:
        return False
    return True


# -- blocks ------------------------------------------------------------------------------------------------


def _blocks(model: nn.Module, separating: Sequence[str], prefix: str) -> list[str]:
    """Return the innermost members of lists of equal blocks that separate the network."""
    for composite in (True, False):
        members = {
            f"{path}.{name}"
            for path, module in model.named_modules()
            if path and path + "." != prefix and isinstance(module, _CONTAINERS)
            for name in _equal_members(module, composite=composite)
        }
        found = [n for n in separating if n in members]
        innermost = [n for n in found if not any(m.startswith(n + ".") for m in found)]
        if innermost:
            return innermost
    return []


def _equal_members(container: nn.Module, *, composite: bool) -> list[str]:
    """Return the children of a container of which there are several of one class.

    Args:
        container: a list or sequence of modules.
        composite: of modules that have parts of their own; else of any, in lists only.
    """
    if not composite and not isinstance(container, _LISTS):
        return []
    own = [
        (n, m)
        for n, m in container.named_children()
        if _learns(m) and (bool(list(m.children())) or not composite)
    ]
    return [n for n, m in own if sum(type(other) is type(m) for _, other in own) > 1]


# -- which submodules separate the network -------------------------------------------------------------------


def _separating(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Return the submodules that run once and through whose message alone all above depends on all below."""
    twin = copied(model)
    for p in twin.parameters():
        if p.is_floating_point():
            p.requires_grad_()
    calls: dict[str, int] = {}
    ends: dict[str, Any] = {}
    learned = {id(p) for p in twin.parameters()}

    def watch(name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            try:
                h = message_in(name, output, find_slot(name, output))
            except CutError:
                return
            if h.grad_fn is not None:
                ends[name] = h.grad_fn  # as it is now: an operation in place would take its place

        return note

    handles = [m.register_forward_hook(watch(n)) for n, m in twin.named_modules() if n and _learns(m)]
    try:
        with torch.enable_grad(), torch.random.fork_rng(cuda_devices(twin)):
            output = twin(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    roots = [t.grad_fn for t in tensors_in(output) if t.grad_fn is not None]
    return [n for n, end in ends.items() if calls[n] == 1 and _separates(end, roots, learned)]


def _separates(end: Any, roots: Sequence[Any], learned: Collection[int]) -> bool:
    above, top = _behind(roots, end)
    if end in roots or not any(id(v) in learned for v in top):
        return False
    below, _ = _behind([end], None)
    reached = any(end is parent for node in above for parent, _ in node.next_functions)
    return reached and not above & below


def _behind(roots: Sequence[Any], stop: Any) -> tuple[set[Any], list[Tensor]]:
    """Return the nodes behind some, up to one, and the leaves that they accumulate into; the latter are no nodes here."""
    nodes: set[Any] = set()
    leaves: list[Tensor] = []
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node is None or node in nodes or node is stop:
            continue
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            leaves.append(variable)
            continue
        nodes.add(node)
        waiting.extend(parent for parent, _ in node.next_functions)
    return nodes, leaves

"""Is the graph of a batch that of the example? Looked at now and then in the plain loop, where nothing else would notice.

A skip connection that appears in some batches only would bring the true gradient past the rule to the module below.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CutError
from .pieces import OUTPUT, Module

__all__ = ["Idle", "audit", "is_due"]


#: Forward passes in training after which some parameter must have changed.
_PATIENCE = 256


def is_due(forward: int) -> bool:
    """Is a forward pass, counted from 1, one to look at? The first ones are, and ever fewer later: 1, 2, 4, 8, …"""
    return forward & (forward - 1) == 0


class Idle:
    """Notices that nobody steps the parameters: `decouple` copies the model, and an optimizer may have the original's.

    They are looked at twice, before the first batch is learned from and after so many that no accumulation of gradients
    explains that nothing has changed.
    """

    def __init__(self) -> None:
        self._before: list[Tensor] | None = None

    def is_due(self, forward: int) -> bool:
        """Is it time to look, in a forward pass counted from 1?"""
        return forward == 1 or (forward == _PATIENCE and self._before is not None)

    def look(self, groups: Mapping[str, Sequence[Tensor]]) -> None:
        """Look at the parameters; the second time, warn if some learn and none has changed.

        Args:
            groups: parameters, by whose they are.
        """
        sums = [_sums(own) for own in groups.values()]
        before, self._before = self._before, sums
        if before is None:
            return
        self._before = None
        for (name, own), then, now in zip(groups.items(), before, sums, strict=True):
            if any(p.grad is not None for p in own) and torch.equal(then, now):
                warnings.warn(
                    f"the parameters of {name} have gradients and have not changed in {_PATIENCE} batches: decouple copies "
                    "the model, so an optimizer of the original's parameters trains nothing; make it of net.parameters(), "
                    "which holds those of network and rules",
                    stacklevel=2,
                )


def _sums(parameters: Sequence[Tensor]) -> Tensor:
    """Return the sum of each parameter, ``(n,)`` on the CPU."""
    found = [0.0 if p.is_meta else float(p.detach().sum()) for p in parameters]
    return torch.tensor(found, dtype=torch.float64)


def audit(model: nn.Module, modules: Sequence[Module], outputs: Sequence[Tensor], cut: str) -> None:
    """Refuse a graph in which a part above a cut reaches the parameters of a part below by another way.

    Args:
        model: the network.
        modules: as found in the example.
        outputs: the tensors that the network has returned.
        cut: name of the nodes that are cuts; their ``interface`` says which.

    Raises:
        CutError: naming the parameter.
    """
    ends: dict[str, list[Any]] = {OUTPUT: [t.grad_fn for t in outputs if t.grad_fn is not None]}
    owners: dict[int, set[str]] = {}
    names: dict[int, str] = {}
    for module in modules:
        for name in module.parameters:
            p = model.get_parameter(name)
            owners.setdefault(id(p), set()).add(module.name)
            names[id(p)] = name
    of = {end: module.name for module in modules for end in module.ends}
    done: set[str] = set()
    while ends:
        end, roots = ends.popitem()
        done.add(end)
        variables, cuts = _behind(roots, cut)
        for variable in variables:
            found = owners.get(id(variable))
            if found is not None and of[end] not in found:
                raise CutError(
                    f"in this batch the part of the network that ends in '{end}' reaches parameter '{names[id(variable)]}' "
                    f"of module '{'+'.join(sorted(found))}' past the cuts, and in the example it did not: a skip connection "
                    "crosses a cut, or modules are run in another order; cut where no connection crosses"
                )
        ends |= {name: [below] for name, below in cuts.items() if name not in done}


def _behind(roots: Sequence[Any], cut: str) -> tuple[list[Tensor], Mapping[str, Any]]:
    """Return the leaves behind some nodes up to the cuts, and the nodes below these, by interface."""
    leaves: list[Tensor] = []
    cuts: dict[str, Any] = {}
    seen: set[Any] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == cut:
            cuts[node.interface.name] = node.next_functions[0][0]
            continue
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            leaves.append(variable)
        waiting.extend(parent for parent, _ in node.next_functions)
    return leaves, cuts

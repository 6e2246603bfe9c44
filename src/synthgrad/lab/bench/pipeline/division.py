"""How a network is divided among the processes: as many layers in each, or where the planner cuts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ....core import Rule
from ....engines import OptimizerFactory
from ....planner import balanced_cuts, profile_model
from ...training.optimizers import optimizer_factory
from .network import Size, Workload

__all__ = ["division", "planned_names", "split_names"]

_REPEATS = 10
_LR = 1e-6  # what an update costs does not depend on it


def division(work: Workload, model: nn.Sequential, parts: int, rule: Rule | None = None) -> list[list[str]]:
    """Return the names of the layers or blocks of each part, the same in every process. All must call it.

    Args:
        work: what is trained.
        model: the whole network.
        parts: number of parts.
        rule: at the end of each part but the last, whose cost the planner counts; None for true gradients.
    """
    if work.size.cuts == "equal":
        return split_names(model, parts)
    found: list[list[list[str]] | None] = [None]
    if dist.get_rank() == 0:  # what is measured is another time in every process, and all need the same cuts
        found = [planned_names(work, model, parts, rule)]
    dist.broadcast_object_list(found)
    assert found[0] is not None
    return found[0]


def split_names(model: nn.Sequential, parts: int) -> list[list[str]]:
    """Return the names of the layers or blocks of each part: as many in each, later ones have one more.

    The output layer is of the last part, the embedding of a GPT of the first.
    """
    names = [name for name, _ in model.named_children()]
    first = 1 if names[0] == "embedding" else 0
    hidden = len(names) - 1 - first
    ends = [first + hidden * (k + 1) // parts for k in range(parts)]
    found = [names[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    found[-1].append(names[-1])
    return found


def planned_names(work: Workload, model: nn.Sequential, parts: int, rule: Rule | None) -> list[list[str]]:
    """Return the names of the layers or blocks of each part, as even as the planner finds after measuring all of them.

    A rule counts as if it learned from every message and every row.
    """
    names = [name for name, _ in model.named_children()]
    x, y = work.batches()[0]
    with work.arithmetic():
        table = profile_model(
            model,
            x,
            target=y,
            criterion=work.criterion(),
            rule=rule,
            candidates=names[:-1],
            optimizer=_optimizer_of(work.size),
            repeats=_REPEATS,
        )
    cuts = balanced_cuts(table, parts, decoupled=rule is not None)
    ends = [0, *(names.index(name) + 1 for name in cuts), len(names)]
    return [names[a:b] for a, b in pairwise(ends)]


def _optimizer_of(size: Size) -> OptimizerFactory:
    """Return what makes the optimizers of some layers. The planner has copies of these, so Muon goes by their shapes."""
    if size.optimizer != "muon":
        return optimizer_factory(size.optimizer, _LR, nn.Module())

    def made(parameters: Sequence[Tensor]) -> list[torch.optim.Optimizer | None]:
        inside = [p for p in parameters if p.ndim == 2 and not any(n % size.width for n in p.shape)]
        known = {id(p) for p in inside}
        rest = [p for p in parameters if id(p) not in known]
        return [
            torch.optim.Muon(inside, _LR) if inside else None,
            torch.optim.AdamW(rest, _LR, fused=True) if rest else None,
        ]

    return made

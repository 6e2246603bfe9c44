"""Averages gradients over the replicas of a stage.

PyTorch's DistributedDataParallel averages those of modules. A rule runs when answers arrive, in one replica
perhaps more often than in another, and every replica must take part in every average. So its mean is over the
replicas that have learned.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..parts import Part

__all__ = ["average_gradients", "wrap_in_ddp"]


def wrap_in_ddp(part: Part, group: dist.ProcessGroup | None) -> Part:
    """Return a part whose module averages its gradients over the replicas; the part itself if there are none.

    Blocks; all replicas must call it.
    """
    if group is None or not any(p.requires_grad for p in part.module.parameters()):
        return part
    return replace(part, module=DistributedDataParallel(part.module, process_group=group))


def average_gradients(rule: nn.Module, group: dist.ProcessGroup) -> None:
    """Average the gradients of a rule's parameters over the replicas, in place. Blocks; all must call it.

    Args:
        rule: the rule, equal in all replicas.
        group: the process group of the replicas.
    """
    parameters = [p for p in rule.parameters() if p.requires_grad]
    if not parameters:
        return
    flat = torch.cat([_or_zero(p).flatten() for p in parameters] + [_learned(parameters)])
    dist.all_reduce(flat, group=group)
    learned = float(flat[-1])
    if not learned:
        return  # no replica has learned, so the rule keeps no gradient, and its optimizer does not step
    flat.div_(learned)
    start = 0
    for p in parameters:
        p.grad = flat[start : start + p.numel()].view_as(p).clone()
        start += p.numel()


def _or_zero(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


def _learned(parameters: list[nn.Parameter]) -> Tensor:
    first = parameters[0]
    return torch.full(
        (1,), float(any(p.grad is not None for p in parameters)), dtype=first.dtype, device=first.device
    )

"""Checks contexts and ids when a batch enters, because a look-up in batched tables would not notice a wrong index."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core import ConfigError, ContextError, Info, Rule
from ...rules import LocalLoss, SyntheticGradient
from ...rules.context_input import index_error

__all__ = ["check_contexts", "check_ids", "num_ids"]


def num_ids(first: nn.Module) -> int:
    """Return how many ids the first module of a network knows; 0 if it looks none up.

    If the embedding is not its first layer, that is the number of the largest one in it.
    """
    leaves = [m for m in first.modules() if not any(m.children())]
    if leaves and isinstance(leaves[0], nn.Embedding):
        return leaves[0].num_embeddings
    return max((m.num_embeddings for m in leaves if isinstance(m, nn.Embedding)), default=0)


def check_ids(known: int, ids: Tensor) -> None:
    """Refuse an id that an embedding does not have: in the tables of several networks it would be one of another's.

    Args:
        known: the number of ids.
        ids: the inputs of the networks.

    Raises:
        ConfigError: if an id is out of range.
    """
    if ids.is_floating_point() or not ids.numel():
        return
    if not ids.is_cpu:
        torch.ops.aten._assert_async(((ids >= 0) & (ids < known)).all())
        return
    low, high = torch.aminmax(ids)
    if low.item() < 0 or high.item() >= known:
        raise ConfigError(
            f"got ids from {int(low)} to {int(high)} for an embedding of {known} rows, expected 0 to {known - 1}; give the "
            "networks ids of their own vocabulary, or make it larger"
        )


def check_contexts(
    rule: Rule, width: int, h: Tensor, contexts: Tensor | None, *, masks: bool = False
) -> None:
    """Refuse a batch for which the rules cannot give credit.

    In batched tables, a class index out of range would point into the table of the next interface. On an
    accelerator such an index stops the program without naming it, so that no step has to wait for the device.

    Args:
        rule: any of the rules; all are alike.
        width: the number of classes, or features, of the context; 0 if the rule has none, or looks nothing
            up.
        h: a tensor with the shape of a message, ``(B, ...)``.
        contexts: the contexts of the newest batch, ``(runs, B, ...)``.
        masks: whether the caller supports an index that means no label.

    Raises:
        ContextError: if the context is missing, or does not fit.
    """
    rule.check(h, Info(context=None if contexts is None else contexts[0]))
    if contexts is None:
        return
    if contexts.is_floating_point():
        for other in contexts[1:]:  # the rule may check the values of each run
            rule.check(h, Info(context=other))
        return
    if not width or not contexts.numel():
        return
    ignore = rule.ignore_index if masks and isinstance(rule, SyntheticGradient | LocalLoss) else None
    if not contexts.is_cpu:
        right = (contexts >= 0) & (contexts < width)
        torch.ops.aten._assert_async((right if ignore is None else right | (contexts == ignore)).all())
        return
    low, high = torch.aminmax(contexts)
    if low.item() >= 0 and high.item() < width:
        return
    known = contexts if ignore is None else contexts[contexts != ignore]
    if ignore is None and isinstance(rule, SyntheticGradient) and rule.ignore_index in (low, high):
        raise ContextError(
            f"interface '{rule.name}': got class index {rule.ignore_index}, which means no label, and the fused step "
            "of the layer-parallel engine needs a label for every example; give the engine fused=False"
        )
    if known.numel() and not (known.min().item() >= 0 and known.max().item() < width):
        raise index_error(known, width, rule.name)

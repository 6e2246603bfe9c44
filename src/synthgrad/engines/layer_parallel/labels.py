"""Contexts that fit: looked at once when a batch enters, for look-ups in batched tables would not notice."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core import Info, Rule
from ...rules.context_input import index_error

__all__ = ["check_contexts"]


def check_contexts(rule: Rule, width: int, h: Tensor, contexts: Tensor | None) -> None:
    """Refuse a batch that the rules cannot credit.

    A class index out of range would be found in the table of the next interface. On an accelerator it stops the
    program there, without a word about which it was, so that no step waits for the device.

    Args:
        rule: any of the rules; all are alike.
        width: classes, or features, of its context; 0 where it has none.
        h: ``(B, ...)``, of the shape of a message.
        contexts: ``(runs, B, ...)``, those of the newest batch.

    Raises:
        ContextError: if the context is missing, or does not fit.
    """
    rule.check(h, Info(context=None if contexts is None else contexts[0]))
    if contexts is None or not width or contexts.is_floating_point() or not contexts.numel():
        return
    low, high = torch.aminmax(contexts)
    if not contexts.is_cpu:
        torch.ops.aten._assert_async((low >= 0) & (high < width))
    elif low.item() < 0 or high.item() >= width:
        raise index_error(contexts, width, rule.name)

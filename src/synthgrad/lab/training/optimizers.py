"""Optimizers by name, with the constants that are customary for language models.

========  ============================================================================================
``adam``  Adam as PyTorch has it
``adamw`` β = (0.9, 0.95), weight decay of 0.1 on matrices and none on vectors (GPT-3, appendix B)
``nadam`` NAdam with β₁ = 0.99 and the same weight decay, decoupled (arXiv 2505.01099, for late gradients)
``muon``  Muon for the matrices of hidden layers, with the same weight decay, and AdamW for all else. Its update has the
          size that one of AdamW has (``match_rms_adamw``), so that one learning rate serves both
========  ============================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...core import Decoupled
from ...engines import OptimizerFactory
from ...optim import ErrorFeedback
from ..tasks.gpt import Block

__all__ = ["optimizer_factory"]

_WEIGHT_DECAY = 0.1
_BETAS = (0.9, 0.95)
_LATE_BETAS = (0.99, 0.999)


def optimizer_factory(
    name: str, lr: float, net: nn.Module, *, error_feedback: bool = False
) -> OptimizerFactory:
    """Return a function that makes the optimizers of some parameters of a network.

    Args:
        name: one of `OPTIMIZERS`.
        lr: learning rate.
        net: the network, decoupled or not, with its final parameters.
        error_feedback: whether to wrap each optimizer in `ErrorFeedback`.
    """
    make: Callable[[Sequence[Tensor], float], list[Optimizer | None]]
    make = _Muon(_hidden_matrices(net)) if name == "muon" else _MAKERS[name]

    def factory(parameters: Any) -> list[Optimizer | None]:
        made = make(parameters, lr)
        return [o if o is None or not error_feedback else ErrorFeedback(o) for o in made]

    return factory


def _adam(parameters: Sequence[Tensor], lr: float) -> list[Optimizer | None]:
    return [torch.optim.Adam(parameters, lr, fused=True)]  # the fastest implementation, for every method


def _adamw(parameters: Sequence[Tensor], lr: float) -> list[Optimizer | None]:
    if not parameters:
        return [None]
    return [torch.optim.AdamW(_decayed_apart(parameters), lr, _BETAS, weight_decay=0.0, fused=True)]


def _nadam(parameters: Sequence[Tensor], lr: float) -> list[Optimizer | None]:
    groups = _decayed_apart(parameters)
    return [
        torch.optim.NAdam(
            groups, lr, _LATE_BETAS, weight_decay=0.0, decoupled_weight_decay=True, foreach=True
        )
    ]


def _decayed_apart(parameters: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Return parameter groups: weight decay for matrices and filters, none for biases and normalisations."""
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": vectors}]
    return [group for group in groups if group["params"]]


@dataclass(frozen=True)
class _Muon:
    hidden: frozenset[int]  # ids of the parameters that are for Muon

    def __call__(self, parameters: Sequence[Tensor], lr: float) -> list[Optimizer | None]:
        matrices = [p for p in parameters if id(p) in self.hidden]
        rest = [p for p in parameters if id(p) not in self.hidden]
        muon = (
            torch.optim.Muon(matrices, lr, weight_decay=_WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
            if matrices
            else None
        )
        return [muon, *_adamw(rest, lr)]


def _hidden_matrices(net: nn.Module) -> frozenset[int]:
    """Return the ids of the weights of all linear layers but the last one of the network, and of each rule.

    The last layer of a rule makes a gradient or scores. The blocks of a GPT count as a whole, in a head too.
    """
    owners: list[nn.Module] = [net]
    if isinstance(net, Decoupled):
        rules = [rule for i in net.interfaces.values() for rule in (i.rule, i.input_rule) if rule is not None]
        owners = [net.model, *rules]
    found: set[int] = set()
    for owner in owners:
        weights = [m.weight for m in owner.modules() if isinstance(m, nn.Linear)]
        found.update(id(w) for w in weights[:-1])
        blocks = [m for m in owner.modules() if isinstance(m, Block)]
        found.update(id(p) for block in blocks for p in block.parameters() if p.ndim == 2)
    return frozenset(found)


_MAKERS: dict[str, Callable[[Sequence[Tensor], float], list[Optimizer | None]]] = {
    "adam": _adam,
    "adamw": _adamw,
    "nadam": _nadam,
}

"""Recognises networks for the fused step: Linear–BatchNorm–ReLU layers, and a linear ``M`` at every cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from ....core import Rule
from ....rules import SyntheticGradient
from ....rules.models import DenseModel
from ...parts.sequences import has_hooks

__all__ = ["Layer", "dense_layer", "linear_models", "parts_of"]


class Layer(NamedTuple):
    """A fully connected layer with BatchNorm."""

    linear: nn.Linear
    norm: nn.BatchNorm1d


def parts_of(module: nn.Module) -> list[nn.Module]:
    """Return the submodules that nested plain Sequentials compute with, in order.

    A Sequential with a forward of its own (a residual block is often one) and an identity with hooks are
    parts like any other, since they compute something.
    """
    if type(module).forward is nn.Sequential.forward:
        # children() would leave out a module that is registered a second time.
        registered = module._modules.values()  # pyright: ignore[reportPrivateUsage]
        return [part for child in registered if child is not None for part in parts_of(child)]
    return [] if type(module) is nn.Identity and not has_hooks(module) else [module]


def dense_layer(module: nn.Module) -> Layer | None:
    """Return the layers of a Linear–BatchNorm–ReLU module, or None for another kind of module.

    A Flatten may come first.
    """
    parts = parts_of(module)
    if parts and type(parts[0]) is nn.Flatten and (parts[0].start_dim, parts[0].end_dim) == (1, -1):
        parts = parts[1:]
    if [type(part) for part in parts] != [nn.Linear, nn.BatchNorm1d, nn.ReLU]:
        return None
    linear, norm, _ = parts
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    usual = norm.affine and norm.track_running_stats and norm.momentum is not None
    own = [*linear.parameters(), *norm.parameters()]
    hooked = any(has_hooks(part) for part in parts)
    return Layer(linear, norm) if usual and not hooked and all(p.requires_grad for p in own) else None


def linear_models(rules: Sequence[Rule]) -> list[DenseModel] | None:
    """Return the ``M`` of all rules, if all are linear on vectors; otherwise None."""
    models: list[DenseModel] = []
    for rule in rules:
        model = rule.model if type(rule) is SyntheticGradient else None
        if type(model) is not DenseModel or not model.is_linear or model.state is not None:
            return None
        if not all(p.requires_grad for p in model.parameters()):
            return None
        models.append(model)
    return models

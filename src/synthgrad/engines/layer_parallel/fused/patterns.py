"""Recognises networks for the fused step: Linear–BatchNorm–ReLU layers, and a linear ``M`` at every cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from torch import nn

from ....core import Rule
from ....rules import SyntheticGradient
from ....rules.models import ClassMeansModel, DenseModel
from ...parts.sequences import has_hooks

__all__ = ["Layer", "dense_layer", "linear_models", "parts_of"]

_Model = TypeVar("_Model", bound=nn.Module)


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


def linear_models(rules: Sequence[Rule]) -> list[DenseModel] | list[ClassMeansModel] | None:
    """Return the ``M`` of all rules, if all are linear on vectors and learn in the same way; otherwise None."""
    models = [rule.model if type(rule) is SyntheticGradient else None for rule in rules]
    found = _all_of(DenseModel, models) or _all_of(ClassMeansModel, models)
    if found is None or not all(p.requires_grad for m in found for p in m.parameters()):
        return None
    fits = all(_is_linear(m) if isinstance(m, DenseModel) else m.rank is None for m in found)
    return found if fits else None


def _all_of(kind: type[_Model], models: Sequence[nn.Module | None]) -> list[_Model] | None:
    """Return the models if each is exactly of a kind; otherwise None."""
    found = [m for m in models if type(m) is kind]
    return found if found and len(found) == len(models) else None


def _is_linear(model: DenseModel) -> bool:
    return model.is_linear and model.state is None

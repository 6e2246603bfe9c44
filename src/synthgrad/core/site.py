"""Where a rule works, and what all rules have in common: a copy for each interface, built for its shapes."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import nn

from .errors import CutError

__all__ = ["AtInterface", "Site"]


@dataclass(frozen=True, slots=True)
class Site:
    """Where a rule is to work: learned from the example batch that ``decouple`` was given.

    Attributes:
        name: name of the interface, which is the name of the submodule after which the cut lies.
        shape: shape of ``h`` in the example, batch dimension first.
        dtype: of the model's parameters (of ``h``, if it has none): what a rule's own should have.
        device: of ``h``.
        module: the submodule after which the cut lies (for models structured like their layer).
        inputs: shape of the network's first input in the example, batch dimension first; None where that
            is no tensor.
        receiver: features of the state of the module that is fed from here, ``F`` of `Info.receiver`; None
            where the engine tells no such state.
        features_dim: the dimension of ``h`` that holds the features (channels), counted with the batch in
            front; negative ones count from the end. None where it is not known, see `features_at`.
        network: the whole network that trains, as `decouple` has copied it, for rules that read its weights; None where
            an engine has none to show. A rule that keeps a module of it keeps it in a tuple: as a submodule it would
            train with the rule, and be saved with it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    module: nn.Module = field(repr=False)
    inputs: tuple[int, ...] | None = None
    receiver: int | None = None
    features_dim: int | None = None
    network: nn.Module | None = field(default=None, repr=False)

    @property
    def features_at(self) -> int:
        """The dimension of ``h`` that holds the features, from 1 to ``len(shape) - 1``.

        Where `features_dim` does not say it: dimension 1 of images and volumes, ``(B, C, Y, X)`` and
        ``(B, C, Z, Y, X)``, and the last one of everything else, ``(B, H)`` or ``(B, T, H)``.

        Raises:
            CutError: if ``h`` has no features, or no such dimension.
        """
        ndim = len(self.shape)
        if ndim < 2:
            raise CutError(f"interface '{self.name}': a message of shape {self.shape} has no features")
        if self.features_dim is None:
            return 1 if ndim in (4, 5) else ndim - 1
        at = self.features_dim + ndim if self.features_dim < 0 else self.features_dim
        if not 1 <= at < ndim:
            raise CutError(
                f"interface '{self.name}': features_dim={self.features_dim} for messages of shape {self.shape}, "
                f"expected 1 to {ndim - 1}, or -1 for the last; dimension 0 is the batch"
            )
        return at


class AtInterface(nn.Module):
    """Base of what sits at an interface; what the user makes is a pattern, of which each gets a copy.

    Attributes:
        name: of the interface, for errors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name = "?"

    def bind(self, site: Site) -> Self:
        """Return a fresh copy, built for one interface; `self` is not changed."""
        bound = copy.deepcopy(self)
        bound.name = site.name
        bound.build(site)
        # Half precision is too narrow for gradients in per-example units: the cut asks in float32 there.
        dtype = torch.float32 if site.dtype == torch.float16 else site.dtype
        return bound.to(site.device, dtype)

    def build(self, site: Site) -> None:
        """Make the parameters that depend on shapes. Called once, by `bind`.

        Raises:
            CutError: if such an interface cannot be served.
        """

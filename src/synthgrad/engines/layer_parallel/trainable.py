"""Checks which parameters learn in a batched step, and adds the gradients of penalties."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core import ConfigError, Decoupled
from ..penalty import Penalties, Penalty
from .storage import GradientTable

__all__ = ["PenaltyGradients", "TrainableParameters"]


class TrainableParameters:
    """The parameters that were trainable when the engine was made; a batched step trains exactly these.

    Args:
        nets: the networks.
    """

    def __init__(self, nets: Sequence[Decoupled]) -> None:
        self._parameters = [(n, p, p.requires_grad) for net in nets for n, p in net.model.named_parameters()]

    def check(self) -> None:
        """Refuse a parameter that has been frozen or thawed since the engine was made.

        Raises:
            ConfigError: naming the parameter.
        """
        for name, p, learned in self._parameters:
            if p.requires_grad != learned:
                raise ConfigError(
                    f"parameter '{name}' was {'frozen' if learned else 'thawed'} after the engine was made, and a batched "
                    "step learns what it learned at the start; make the engine anew, or use InProcess"
                )

    def check_precision(self, x: Tensor) -> None:
        """Refuse float16, of the network or of an autocast around the step: its gradients need a scaled loss.

        Raises:
            ConfigError: saying what to use.
        """
        kind = x.device.type
        cast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
        if cast or any(p.dtype == torch.float16 for _, p, _ in self._parameters):
            raise ConfigError(
                "layers that learn in float16 need a scaled loss, and an unlocked module has no loss to scale; use bfloat16"
            )


class PenaltyGradients:
    """Adds the gradients of penalties to the gradients of a step.

    Args:
        nets: the network, as the only element.
        penalty: the user's penalty.
        gradients: where the gradients are written.
        compiled: whether the graph of a step ends with the update.

    Raises:
        ConfigError: if there are several networks or a compiled step, or a penalty does not depend on
            parameters that this engine updates.
    """

    def __init__(
        self, nets: Sequence[Decoupled], penalty: Penalty, gradients: GradientTable, *, compiled: bool
    ) -> None:
        if len(nets) > 1 or compiled:
            raise ConfigError(
                "a penalty is added to the gradients of one network between its backward pass and its update: leave out "
                f"{'compile' if compiled else 'the other networks'}, or use InProcess"
            )
        net = nets[0]
        self._penalties = Penalties(net, penalty)
        self._gradients = gradients
        self._own = {
            m.name: [p for n in m.parameters if (p := net.model.get_parameter(n)).requires_grad]
            for m in net.graph.modules
            if self._penalties.function(m.name) is not None
        }
        for module, own in self._own.items():
            if own and (
                self._penalties.compute(module) is None or any(id(p) not in gradients.since for p in own)
            ):
                raise ConfigError(
                    f"the penalty of module '{module}' does not depend on parameters that this engine updates: here it can "
                    "depend on weights only, and on those of modules that have credit; use InProcess"
                )

    def add(self, step: int) -> None:
        """Add the gradients for the modules that a batch has reached at this step."""
        for module, own in self._own.items():
            if not own or step < self._gradients.since[id(own[0])]:
                continue
            with torch.enable_grad():
                found = self._penalties.compute(module)
            if found is None:
                continue
            for p, grad in zip(own, torch.autograd.grad(found, own, allow_unused=True), strict=True):
                if grad is not None:
                    self._gradients.grads[id(p)].add_(grad)

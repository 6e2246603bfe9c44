"""Which decoupled networks can be trained without locks."""

from __future__ import annotations

import warnings

from ..core import ConfigError, Decoupled

__all__ = ["check_unlockable", "warn_of_evaluation"]


def check_unlockable(net: Decoupled) -> None:
    """Refuse what cannot learn piece by piece.

    Raises:
        ConfigError: naming the parameter, the module or the interface.
    """
    if net.units.loss_scale is not None:
        raise ConfigError(
            "the network was decoupled with loss_scale, which is for the plain training loop: here modules "
            "learn from credit that no loss was scaled for; decouple it without"
        )
    owner: dict[str, str] = {}
    for module in net.graph.modules:
        if module.hides_parameters:
            raise ConfigError(
                f"module '{module.name}' runs a part under activation checkpointing with use_reentrant=True, "
                "which hides its parameters; use use_reentrant=False, or train in the plain loop"
            )
        for name in module.parameters:
            if name in owner:
                raise ConfigError(
                    f"parameter '{name}' is used by two modules, '{owner[name]}' and '{module.name}': "
                    "without locks each would update it behind the other's back; untie it, cut so that both "
                    "uses fall into one module, or train in the plain loop"
                )
            owner[name] = module.name
    for name, interface in net.interfaces.items():
        if interface.rule.error_to_h:
            raise ConfigError(
                f"the rule at interface '{name}' lets its error flow into h, which arrives after the module "
                "below has updated; use error_to_h=False, or train in the plain loop"
            )
        if interface.rule.waits and interface.input_rule is not None:
            raise ConfigError(
                f"the rule at interface '{name}' has the module below wait for its true message, but what comes "
                "back there belongs to a synthetic input; use one of the two"
            )


def warn_of_evaluation(net: Decoupled) -> None:
    """Say that a network is about to be trained in evaluation mode."""
    if not net.training:
        warnings.warn(
            "the network is in evaluation mode, as from_pretrained leaves a model: it is trained without Dropout and with "
            "BatchNorm's running statistics; call net.train() first if that is not what you want",
            stacklevel=3,
        )

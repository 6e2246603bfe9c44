"""Which rules stages can train with, and under which settings."""

from __future__ import annotations

from ...core import ConfigError, Decoupled
from .connect import Settings

__all__ = ["check_rules"]


def _check_inputs(net: Decoupled, settings: Settings, replicas: int) -> None:
    supplied = [name for name, interface in net.interfaces.items() if interface.input_rule is not None]
    if not supplied:
        return
    where = f"interface '{supplied[0]}' has synthetic inputs"
    if settings.exact:
        raise ConfigError(
            f"{where}, which are used when the real ones are late, and deterministic=True wants runs alike; use one of "
            "the two, or InProcess"
        )
    if replicas > 1 or settings.target is not None or any(i.rule.waits for i in net.interfaces.values()):
        raise ConfigError(
            f"{where}: not together with replicas, targets that travel or rules that wait; leave these out, or decouple "
            "without inputs"
        )


def check_rules(net: Decoupled, settings: Settings, replicas: int) -> None:
    """Refuse rules that cannot work so.

    Raises:
        ConfigError: naming the interface.
    """
    _check_inputs(net, settings, replicas)
    for name, interface in net.interfaces.items():
        rule = interface.rule
        if not rule.waits:
            continue
        if settings.window is None:
            raise ConfigError(
                f"the rule at interface '{name}' has the module below wait for its message: say how many steps, as in "
                "window=0 (backpropagation) or window=2 (delayed gradients)"
            )
        if settings.observe_prob != 1:
            raise ConfigError(
                f"observe_prob={settings.observe_prob}: the rule at interface '{name}' waits for every message; use 1"
            )
        if settings.window and replicas > 1:
            raise ConfigError(
                f"the rule at interface '{name}' waits, and with window={settings.window} several graphs are kept, "
                "which data parallel replicas cannot average; use window=0 or one replica"
            )

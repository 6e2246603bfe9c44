"""The handshake: all processes must have the same network, cut in the same places, and the same settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ...core import ConfigError
from .coordinator import Coordinator
from .transport.base import difference

__all__ = ["describe_state", "handshake"]


def describe_state(model: nn.Module) -> list[str]:
    """Return one line for every parameter and buffer of a network: name, shape, dtype."""
    return [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in model.state_dict().items()]


def handshake(coordinator: Coordinator, facts: Mapping[str, Any], timeout_s: float) -> list[dict[str, Any]]:
    """Exchange facts about what each process is about to run, and check that they agree.

    Blocks until all have called it.

    Args:
        coordinator: the coordinator of all ranks.
        facts: JSON values. The values under ``"same"`` must be equal everywhere, the others may differ.
        timeout_s: how long to wait for the others, in seconds.

    Returns:
        The facts of all processes, by rank.

    Raises:
        ConfigError: if two processes differ; names the first difference.
        StageError: if some processes do not come.
    """
    coordinator.publish(f"hello/{coordinator.transport.rank}", facts)
    found: list[dict[str, Any]] = [
        coordinator.wait_for(f"hello/{k}", k, timeout_s) for k in range(coordinator.transport.world_size)
    ]
    first = found[0]["same"]
    for other, theirs in enumerate(found):
        for key, value in first.items():
            if theirs["same"].get(key) != value:
                raise ConfigError(
                    f"rank 0 and rank {other} differ in {key}: {difference(value, theirs['same'].get(key))}; "
                    "start all processes with the same program and settings"
                )
    return found

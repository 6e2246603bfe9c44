"""How many steps after its forward pass a module learns, and sends its message, for given rules and lags."""

from __future__ import annotations

from collections.abc import Mapping

from ...core import Decoupled
from ...core.graph import OUTPUT
from .lags import Lag

__all__ = ["learning_delays"]


def learning_delays(net: Decoupled, lags: Mapping[str, Lag]) -> list[int]:
    """Return for each module the steps from its forward pass until its own gradient is known, in the forward order.

    A module whose rule gives credit at once has 0. Where rules wait, the delays of interfaces add up on the way down.

    Args:
        net: the decoupled network.
        lags: the lag of every interface.
    """
    graph = net.graph
    learns = [0] * len(graph.modules)
    sends = [0] * len(graph.modules)
    for k in reversed(range(len(graph.modules))):
        for end in graph.modules[k].ends:
            if end == OUTPUT:
                continue
            rule, lag = net.interfaces[end].rule, lags[end]
            arrives = max(lag.forward, 0) + max(sends[c] for c in graph.consumers(end)) + lag.observe
            if rule.waits:
                learns[k] = max(learns[k], arrives)
            if rule.corrects or (rule.waits and not rule.sends_ahead):
                sends[k] = max(sends[k], arrives)
    return learns

"""The messages in flight at all interfaces of a network, and a check of the lags that a network can have."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...core import ConfigError, Decoupled, ShapeError
from ...core.in_flight import Batch, InFlight
from ..base import ForwardArgs
from ..parts import check_nothing_crosses
from .lags import Lag, Mailbox, RecentBatches
from .module_step import ModuleStep
from .saved_messages import RebuildGraphs, pack, unpack

__all__ = ["Mailboxes"]


class Mailboxes:
    """The mailboxes of all interfaces, and the batches that upper modules are ahead by.

    Args:
        net: the network.
        lags: the lags by interface; by default 0.

    Raises:
        ConfigError: if the network cannot have these lags.
    """

    def __init__(self, net: Decoupled, lags: Mapping[str, Lag]) -> None:
        self._net = net
        checked = _checked(net, lags)
        self._boxes = {name: Mailbox(lag) for name, lag in checked.items()}
        self._recent = RecentBatches(sum(max(-lag.forward, 0) for lag in checked.values()))
        self._one_size = any(lag.forward for lag in checked.values()) and not check_nothing_crosses(net)

    @property
    def lags(self) -> dict[str, Lag]:
        """The lags of all interfaces."""
        return {name: box.lag for name, box in self._boxes.items()}

    def lag(self, name: str) -> Lag:
        """Return the lag of an interface."""
        return self._boxes[name].lag

    def is_late(self, name: str) -> bool:
        """Return whether anything takes a step or more to cross an interface."""
        lag = self.lag(name)
        return bool(lag.forward or lag.observe)

    def enter(self, passed: ForwardArgs, batch: Batch) -> tuple[ForwardArgs, Batch] | None:
        """Add the newest batch, and return the batch for the bottom; None while there are too few."""
        return self._recent.enter(passed, batch)

    def ahead(self, name: str, batch: Batch) -> tuple[int, Batch]:
        """Return how many batches the module above an interface is ahead, and the batch that it works on."""
        steps = -self.lag(name).forward
        return steps, self._recent.after(batch, steps)

    def pass_up(self, name: str, above: InFlight, below: InFlight) -> InFlight | None:
        """Add an activation at an interface, and return the one that is due above; None while the lag fills.

        Args:
            name: the name of the interface.
            above: the activation, or the synthetic input that replaces it.
            below: the activation that the module below has just produced.

        Raises:
            ShapeError: if batches of two sizes meet in a network whose own code runs with the size of the
                newer one.
        """
        due = self._boxes[name].pass_up(above)
        if due is not None and self._one_size and due.h.shape[0] != below.h.shape[0]:
            raise ShapeError(
                f"interface '{name}' has a forward lag, and batches of {due.h.shape[0]} and {below.h.shape[0]} examples meet "
                "there: the network's own code runs above it with the size of the newer one; give batches of one size, "
                "or leave the last, smaller one out (drop_last=True)"
            )
        return due

    def pass_down(self, name: str, flight: InFlight, step: int) -> None:
        """Add a message that is sent in ``step``."""
        self._boxes[name].pass_down(flight, step)

    def due(self, names: Sequence[str], step: int) -> list[tuple[str, InFlight]]:
        """Remove and return the messages that are due in ``step`` at some interfaces."""
        return [(name, flight) for name in names for flight in self._boxes[name].pop_due(step)]

    def state_dict(self) -> dict[str, Any]:
        """Return the messages in flight as plain containers of tensors."""
        boxes = {name: {"up": box.up, "down": box.down} for name, box in self._boxes.items()}
        return {"mail": pack(boxes), "recent": self._recent.state_dict()}

    def load_state_dict(
        self, state: Mapping[str, Any], rebuild: RebuildGraphs, take_turn: Callable[[ModuleStep], None]
    ) -> None:
        """Load what `state_dict` returned.

        Args:
            state: the state.
            rebuild: rebuilds the graphs of modules that wait.
            take_turn: updates a module if it waits for no other message.
        """
        for name, box in unpack(state["mail"], self._net, rebuild, take_turn).items():
            self._boxes[name].up, self._boxes[name].down = deque(box["up"]), deque(box["down"])
        self._recent.load_state_dict(state["recent"])


def _checked(net: Decoupled, lags: Mapping[str, Lag]) -> dict[str, Lag]:
    """Return a lag for every interface.

    Raises:
        ConfigError: if an interface is unknown or a lag is negative; if a network that is not a chain has a
            forward lag (two batches would meet where branches join); or if a module is to be ahead of the one
            below without synthetic inputs, or behind it with them.
    """
    graph = net.graph
    known = list(graph.sites)
    if not isinstance(lags, Mapping) or not all(isinstance(lag, Lag) for lag in lags.values()):
        raise ConfigError(
            f"lags={lags!r}: expected a Lag by interface, as in lags={{{known[0]!r}: Lag(observe=2)}}"
        )
    for name, lag in lags.items():
        if name not in graph.sites:
            raise ConfigError(f"lags name the interface '{name}', expected one of {known}")
        supplied = net.interfaces[name].input_rule is not None
        if lag.observe < 0 or (lag.forward < 0 and not supplied):
            raise ConfigError(
                f"lag of interface '{name}' is {lag}, expected numbers of steps from 0; only an interface with "
                "synthetic inputs has a forward lag under 0"
            )
        if lag.forward > 0 and supplied:
            raise ConfigError(
                f"interface '{name}' has synthetic inputs and lag {lag}: the module above waits for nothing; "
                "give a forward lag of 0, or less to have it ahead"
            )
        if lag.forward and not graph.is_chain:
            raise ConfigError(
                f"interface '{name}' has a forward lag, but the modules of this network are not a chain: where "
                "branches join, two batches would meet; use observe lags only"
            )
    return {name: lags.get(name, Lag()) for name in known}

"""Does decoupling pay, and from which round trip on: schedules over links that are longer and shorter than the given one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from .links import Link, Network, Wire
from .menu import KINDS, PIPELINES, Menu, Row

__all__ = ["ROUND_TRIPS_MS", "Curve", "best_of", "curve_of", "pays", "with_round_trip"]

#: Round trips that are tried, from a machine room to the other side of the world.
ROUND_TRIPS_MS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)

#: One schedule is faster than another if it saves this share of the step.
_FASTER = 0.01
#: Of decoupled stages those that send more are taken if they lose no more than this.
_TIED = 0.03
#: Of a step between two round trips, to find where one schedule overtakes another: to 1 % of the round trip.
_HALVINGS = 7


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds of a step over round trips, the rate of the link being as given.

    Attributes:
        round_trips_s: the round trips, ascending.
        steps_s: of the best schedule at each of them, by ``decoupled``, ``pipelines``, ``data parallel`` and
            ``one machine``, as far as the plan has any.
        pays: from which to which round trip the decoupled stages are faster than every synchronous schedule. The first is
            0 if they are at the shortest round trip, the last is infinite if they are at the longest.
    """

    round_trips_s: tuple[float, ...] = ()
    steps_s: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    pays: tuple[tuple[float, float], ...] = ()


def pays(decoupled_s: float, synchronous_s: float) -> bool:
    """Return whether a step of decoupled stages is faster than a synchronous one, by more than 1 %."""
    return decoupled_s < (1 - _FASTER) * synchronous_s


def best_of(rows: Sequence[Row], kind: str) -> Row | None:
    """Return the fastest row of a kind, None without any.

    Of decoupled stages those count that have the rule of the plan, if there are such; a local loss beside it is for
    comparison. Of rows that differ by less than 3 % it is the one that sends the most messages in the most bits.
    """
    found = [row for row in rows if row.kind == kind]
    found = [row for row in found if row.schedule == "stages"] or found
    if not found:
        return None
    fastest = min(row.step_s for row in found)
    tied = [row for row in found if row.step_s * (1 - _TIED) <= fastest]
    if kind == "synchronous":
        return min(found, key=lambda row: row.step_s)
    return min(tied, key=lambda row: (-(row.share or 0.0), row.codec not in (None, "float32"), row.step_s))


def with_round_trip(network: Network, rtt_s: float) -> Network:
    """Return a network whose links have another propagation, half of it in each direction."""

    def wire(of: Wire) -> Wire:
        return replace(of, delay_s=rtt_s / 2)

    return replace(network, links=tuple(Link(wire(link.up), wire(link.down)) for link in network.links))


def curve_of(menu: Menu, network: Network, best: Row | None, round_trips_s: Sequence[float]) -> Curve:
    """Return the steps of the best schedules over round trips, and where decoupled stages are the fastest.

    Args:
        menu: of the schedules.
        network: whose links are lengthened and shortened.
        best: the decoupled stages, whose window is chosen anew for each round trip; None if there are none.
        round_trips_s: to try.
    """
    return _Curves(menu, network, best).over(sorted(round_trips_s))


class _Curves:
    def __init__(self, menu: Menu, network: Network, best: Row | None) -> None:
        self._menu = menu
        self._network = network
        self._best = best
        # Synchronous schedules are the faster, the fewer bytes they send.
        self._codecs = [min(menu.codecs, key=lambda codec: codec.ratio)]
        # What does not depend on the link is simulated once.
        self._alone = [row for name in menu.schedules if name == "backprop" for row in menu.of(name, network)]

    def over(self, round_trips_s: Sequence[float]) -> Curve:
        found: dict[str, list[float]] = {}
        for rtt_s in round_trips_s:
            for name, step_s in self._steps(rtt_s).items():
                found.setdefault(name, []).append(step_s)
        steps_s = {name: tuple(steps) for name, steps in found.items()}
        return Curve(tuple(round_trips_s), steps_s, self._pays(round_trips_s, steps_s))

    def _steps(self, rtt_s: float) -> dict[str, float]:
        """Return the seconds of a step of the best schedule of each family."""
        network = with_round_trip(self._network, rtt_s)
        found: dict[str, float] = {}
        if self._best is not None:
            found["decoupled"] = self._menu.again(self._best, network).step_s
        for family, names in (("pipelines", tuple(PIPELINES)), ("data parallel", ("data_parallel",))):
            rows = [
                row
                for name in self._menu.schedules
                if name in names and KINDS[name] == "synchronous"
                for row in self._menu.of(name, network, self._codecs)
            ]
            if rows:
                found[family] = min(row.step_s for row in rows)
        if self._alone:
            found["one machine"] = self._alone[0].step_s
        return found

    def _pays(
        self, round_trips_s: Sequence[float], steps_s: Mapping[str, Sequence[float]]
    ) -> tuple[tuple[float, float], ...]:
        if "decoupled" not in steps_s or len(steps_s) < 2 or not round_trips_s:
            return ()
        flags = [
            self._is_faster({name: steps[k] for name, steps in steps_s.items()})
            for k in range(len(round_trips_s))
        ]
        found: list[tuple[float, float]] = []
        begin = 0.0 if flags[0] else None
        for k in range(1, len(flags)):
            if flags[k] == flags[k - 1]:
                continue
            at = self._change(round_trips_s[k - 1], round_trips_s[k], flags[k])
            if begin is None:
                begin = at
            else:
                found.append((begin, at))
                begin = None
        if begin is not None:
            found.append((begin, math.inf))
        return tuple(found)

    def _change(self, low_s: float, high_s: float, faster_above: bool) -> float:
        """Return the round trip between two at which the decoupled stages begin, or cease, to be faster."""
        for _ in range(_HALVINGS):
            middle_s = math.sqrt(low_s * high_s) if low_s > 0 else high_s / 2
            if self._is_faster(self._steps(middle_s)) == faster_above:
                high_s = middle_s
            else:
                low_s = middle_s
        return high_s

    @staticmethod
    def _is_faster(steps_s: Mapping[str, float]) -> bool:
        others = [step_s for name, step_s in steps_s.items() if name != "decoupled"]
        return pays(steps_s["decoupled"], min(others))

"""What is under way in one process as plain containers: messages, and the turns that wait for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..core import Decoupled
from ..core.in_flight import Batch, InFlight
from .held import Held
from .turns import Turn, Waiting

__all__ = ["Rebuild", "pack", "unpack"]

#: Builds the graphs of some turns of one step again, from what their forward pass was made of.
Rebuild = Callable[[Mapping[str, Any], Sequence[Turn]], None]


class _Packer:
    """Numbers messages, turns and passes: a message may be fed to several turns, a pass have several that wait."""

    def __init__(self) -> None:
        self.flights: list[dict[str, Any]] = []
        self.turns: list[dict[str, Any]] = []
        self.held: list[dict[str, Any]] = []
        self._numbers: dict[int, int] = {}
        self._alive: list[object] = []  # so that no number is given twice

    def flight(self, flight: InFlight) -> int:
        number = self._numbers.get(id(flight))
        if number is not None:
            return number
        number = self._number(flight, len(self.flights))
        self.flights.append({**flight.state_dict(), "release": None})
        if isinstance(flight.release, Waiting):
            self.flights[number]["release"] = (self.turn(flight.release.turn), flight.release.end)
        return number

    def turn(self, turn: Turn) -> int:
        number = self._numbers.get(id(turn))
        if number is not None:
            return number
        number = self._number(turn, len(self.turns))
        self.turns.append({})
        assert turn.held is not None
        self.turns[number] |= {
            "position": turn.position,
            "held": self.pass_of(turn.held),
            "batch": None if turn.batch is None else turn.batch.state_dict(),
            "fed": {name: self.flight(flight) for name, flight in turn.fed.items()},
            "grads": list(turn.grads),
            "missing": turn.missing,
            "value": turn.value,
            "output_error": turn.output_error,
            "learned": turn.learned,
            "done": turn.done,
        }
        return number

    def pass_of(self, held: Held) -> int:
        number = self._numbers.get(id(held))
        if number is None:
            number = self._number(held, len(self.held))
            self.held.append(held.state_dict())
        return number

    def _number(self, thing: object, number: int) -> int:
        self._alive.append(thing)
        self._numbers[id(thing)] = number
        return number


def pack(boxes: Mapping[str, Mapping[str, Iterable[InFlight]]]) -> dict[str, Any]:
    """Return the messages of some boxes, and all that hangs on them.

    Args:
        boxes: messages by interface and direction.
    """
    packer = _Packer()
    numbers = {
        name: {way: [packer.flight(flight) for flight in flights] for way, flights in box.items()}
        for name, box in boxes.items()
    }
    return {"boxes": numbers, "flights": packer.flights, "turns": packer.turns, "held": packer.held}


def unpack(
    state: Mapping[str, Any], net: Decoupled, rebuild: Rebuild, finish: Callable[[Turn], None]
) -> dict[str, dict[str, list[InFlight]]]:
    """Return the boxes that `pack` was given, with the graphs of the turns that wait built again.

    Args:
        state: what `pack` returned.
        net: the network.
        rebuild: builds the graphs of the turns of one pass.
        finish: lets a module learn that waits for nothing more.
    """
    flights = [InFlight.from_state(saved) for saved in state["flights"]]
    turns: list[Turn] = []
    of_pass: dict[int, list[Turn]] = {}
    for saved in state["turns"]:
        turn = Turn(saved["position"])
        turn.batch = None if saved["batch"] is None else Batch.from_state(saved["batch"])
        turn.fed = {name: flights[k] for name, k in saved["fed"].items()}
        turn.grads, turn.missing, turn.value = list(saved["grads"]), saved["missing"], saved["value"]
        turn.output_error = saved.get("output_error")
        turn.learned, turn.done = saved["learned"], saved["done"]
        turns.append(turn)
        of_pass.setdefault(saved["held"], []).append(turn)
    for number, waiting in of_pass.items():
        rebuild(state["held"][number], waiting)
    for flight, saved in zip(flights, state["flights"], strict=True):
        if saved["release"] is not None:
            turn, end = saved["release"]
            flight.release = Waiting(turns[turn], end, net.interfaces[flight.name], finish)
    return {
        name: {way: [flights[k] for k in numbers] for way, numbers in box.items()}
        for name, box in state["boxes"].items()
    }

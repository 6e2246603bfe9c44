"""Converts messages in flight, and the modules that wait for them, to plain containers and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ...core import Decoupled
from ...core.in_flight import Batch, InFlight
from ..replay import ForwardReplay
from .module_step import ModuleStep, PendingEnd

__all__ = ["RebuildGraphs", "pack", "unpack"]

#: Rebuilds the graphs of some modules of one step, from the conditions of its forward pass.
RebuildGraphs = Callable[[Mapping[str, Any], Sequence[ModuleStep]], None]


class _Packer:
    """Numbers messages, module steps and forward passes, so that each is saved once.

    A message may feed several modules, and several modules may wait for the messages of one forward pass.
    """

    def __init__(self) -> None:
        self.flights: list[dict[str, Any]] = []
        self.module_steps: list[dict[str, Any]] = []
        self.replays: list[dict[str, Any]] = []
        self._numbers: dict[int, int] = {}
        self._alive: list[object] = []  # keeps the objects, so that no id is used a second time

    def flight_number(self, flight: InFlight) -> int:
        number = self._numbers.get(id(flight))
        if number is not None:
            return number
        number = self._number(flight, len(self.flights))
        self.flights.append({**flight.state_dict(), "release": None})
        if isinstance(flight.release, PendingEnd):
            self.flights[number]["release"] = (
                self.module_step_number(flight.release.module_step),
                flight.release.end,
            )
        return number

    def module_step_number(self, module_step: ModuleStep) -> int:
        number = self._numbers.get(id(module_step))
        if number is not None:
            return number
        number = self._number(module_step, len(self.module_steps))
        self.module_steps.append({})
        assert module_step.replay is not None
        self.module_steps[number] |= {
            "position": module_step.position,
            "step": module_step.step,
            "has_sent": module_step.has_sent,
            "corrections": module_step.corrections,
            "keeps_graph": module_step.keeps_graph,
            "differences": dict(module_step.differences),
            "replays": self.replay_number(module_step.replay),
            "batch": None if module_step.batch is None else module_step.batch.state_dict(),
            "fed": {name: self.flight_number(flight) for name, flight in module_step.fed.items()},
            "grads": list(module_step.grads),
            "missing": module_step.missing,
            "value": module_step.value,
            "output_error": module_step.output_error,
            "learned": module_step.learned,
            "done": module_step.done,
        }
        return number

    def replay_number(self, replay: ForwardReplay) -> int:
        number = self._numbers.get(id(replay))
        if number is None:
            number = self._number(replay, len(self.replays))
            self.replays.append(replay.state_dict())
        return number

    def _number(self, thing: object, number: int) -> int:
        self._alive.append(thing)
        self._numbers[id(thing)] = number
        return number


def pack(boxes: Mapping[str, Mapping[str, Iterable[InFlight]]]) -> dict[str, Any]:
    """Convert messages into plain containers, with all that belongs to them.

    Args:
        boxes: the messages by interface and direction.
    """
    packer = _Packer()
    numbers = {
        name: {way: [packer.flight_number(flight) for flight in flights] for way, flights in box.items()}
        for name, box in boxes.items()
    }
    return {
        "boxes": numbers,
        "flights": packer.flights,
        "module_steps": packer.module_steps,
        "replays": packer.replays,
    }


def unpack(
    state: Mapping[str, Any],
    net: Decoupled,
    rebuild: RebuildGraphs,
    take_turn: Callable[[ModuleStep], None],
) -> dict[str, dict[str, list[InFlight]]]:
    """Return the messages that `pack` was given. The graphs of modules that wait are rebuilt.

    Args:
        state: what `pack` returned.
        net: the network.
        rebuild: rebuilds the graphs of the modules of one forward pass.
        take_turn: lets a module go on that waits for no other message.
    """
    flights = [InFlight.from_state(saved) for saved in state["flights"]]
    module_steps: list[ModuleStep] = []
    by_replay: dict[int, list[ModuleStep]] = {}
    for saved in state["module_steps"]:
        module_step = ModuleStep(saved["position"], step=saved.get("step", 0))
        module_step.has_sent = saved.get("has_sent", False)
        module_step.corrections = saved.get("corrections", 0)
        module_step.keeps_graph = saved.get("keeps_graph", False)
        module_step.differences = dict(saved.get("differences", {}))
        module_step.batch = None if saved["batch"] is None else Batch.from_state(saved["batch"])
        module_step.fed = {name: flights[k] for name, k in saved["fed"].items()}
        module_step.grads, module_step.missing, module_step.value = (
            list(saved["grads"]),
            saved["missing"],
            saved["value"],
        )
        module_step.output_error = saved.get("output_error")
        module_step.learned, module_step.done = saved["learned"], saved["done"]
        module_steps.append(module_step)
        by_replay.setdefault(saved["replays"], []).append(module_step)
    for number, waiting in by_replay.items():
        rebuild(state["replays"][number], waiting)
        for module_step in waiting:
            if module_step.corrections and module_step.done and not module_step.keeps_graph:
                module_step.ends.clear()  # its graph is made anew when the message comes
    for flight, saved in zip(flights, state["flights"], strict=True):
        if saved["release"] is not None:
            module_step, end = saved["release"]
            flight.release = PendingEnd(
                module_steps[module_step], end, net.interfaces[flight.name], take_turn
            )
    return {
        name: {way: [flights[k] for k in numbers] for way, numbers in box.items()}
        for name, box in state["boxes"].items()
    }

"""From a line of ``bench pipeline`` to the time of its step: costs of stages, the network between them, the job.

Costs of layers are shares of a step of one process, by their multiplications and additions: those of a hidden layer with
``W`` units are one unit forward, one for the gradients of its inputs and one for those of its weights. The rule at a cut,
a linear ``M``, is as wide: one unit to give credit, one to learn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from ....planner import Link, Machine, Network, Run, StageCost, simulate
from ....planner.programs import CODECS, data_parallel, decoupled, pipeline
from .lines import Line, Session

__all__ = ["CORES", "Overheads", "predict"]

#: Of the machines on which the records were made.
CORES = 2

_INPUTS, _CLASSES, _FLOAT_BYTES = 784, 10, 4
#: Seconds of fused Adam for a parameter, on one thread; profiled.
_UPDATE_S = 0.85e-9
_SCHEDULES = {
    ("zero_bubble", "interleaved"): "zero_bubble",
    ("zero_bubble", "zbv"): "zero_bubble_v",
}
#: Bytes on an Ethernet link over those of the messages: headers of frames, packets and segments.
_HEADERS = 1.048


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """What the one-process lines do not say. `fit` finds them from a few lines.

    Attributes:
        action_ms: of a pipeline, for each pass of a microbatch.
        split_ms: of a schedule without bubbles, for each half of a backward pass.
        stage_ms: of our stages, for each step.
        message_ms: for each message, in the process that sends it and in the one that takes it.
        copy_ns: for each byte over the loopback device, in both.
        relay_ns: for each byte over an emulated link, in both; the relay takes its time from the same cores.
        relay_ms: that each direction of an emulated link is late, by its relay and by processes that wake up slowly. `fit`
            leaves 0 as it is.
        crowd: slowdown of computations while more processes compute than there are cores, besides their share.
    """

    action_ms: float = 0.5
    split_ms: float = 0.8
    stage_ms: float = 1.0
    message_ms: float = 0.2
    copy_ns: float = 0.5
    relay_ns: float = 2.0
    relay_ms: float = 0.0
    crowd: float = 1.2

    def to_dict(self) -> dict[str, float]:
        """Return them by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class _Part:
    """Layers of one process: units of arithmetic forward and backward, and parameters."""

    forward: float
    backward: float
    parameters: float


def predict(line: Line, session: Session, overheads: Overheads) -> Run:
    """Simulate what a line measures.

    Args:
        line: what to predict; its measured time is not read.
        session: of whose one-process lines the costs are.
        overheads: what these lines do not say.
    """
    job = _job(line, session, overheads)
    return simulate(job, _network(line, session, overheads), machines=_machines(line, session, overheads))


def _parts(line: Line, count: int) -> list[_Part]:
    """Return the layers of each of ``count`` parts, as the benchmark divides them."""
    width, hidden = line.width, line.layers - 1
    wide = _INPUTS / width
    layers = [_Part(wide, wide, _INPUTS * width)]  # nobody needs the gradient of the network's input
    layers += [_Part(1.0, 2.0, width * width)] * (hidden - 1)
    layers += [_Part(_CLASSES / width, 2 * _CLASSES / width, _CLASSES * width)]
    ends = [hidden * (k + 1) // count for k in range(count)]
    ends[-1] = line.layers
    found: list[_Part] = []
    for start, end in zip([0, *ends], ends, strict=False):
        own = layers[start:end]
        found.append(
            _Part(sum(p.forward for p in own), sum(p.backward for p in own), sum(p.parameters for p in own))
        )
    return found


def _unit_s(line: Line, session: Session) -> float:
    """Return the seconds of one unit of arithmetic."""
    (whole,) = _parts(line, 1)
    update_s = _UPDATE_S * whole.parameters
    return max(1e-9, session.backprop_ms * 1e-3 - update_s) / (whole.forward + whole.backward)


def _costs(line: Line, session: Session, count: int) -> list[StageCost]:
    """Return the costs of ``count`` parts, without those of rules and of what runs them."""
    unit_s = _unit_s(line, session)
    further_s = session.microbatch_ms.get(line.batch_size)
    if further_s is None:  # calls cost the same whatever is in a batch
        further_s = max(session.microbatch_ms.values(), default=0.0)
    call_s = further_s * 1e-3 / count
    return [
        StageCost(
            part.forward * unit_s,
            part.backward * unit_s,
            _UPDATE_S * part.parameters,
            output_bytes=_FLOAT_BYTES * line.width * line.batch_size if k + 1 < count else 0.0,
            parameter_bytes=_FLOAT_BYTES * part.parameters,
            forward_call_s=call_s / 3,
            backward_call_s=2 * call_s / 3,
        )
        for k, part in enumerate(_parts(line, count))
    ]


def _job(line: Line, session: Session, overheads: Overheads) -> Any:
    if line.method == "ddp":
        (whole,) = _costs(line, session, 1)
        return data_parallel(whole, processes=line.stages, batch_size=line.batch_size)
    if line.microbatches is not None:
        return _pipeline(line, session, overheads)
    return _stages(line, session, overheads)


def _pipeline(line: Line, session: Session, overheads: Overheads) -> Any:
    assert line.microbatches is not None
    name = _SCHEDULES.get((line.method, line.variant or ""), line.method)
    split = line.method == "zero_bubble"
    action_s = overheads.action_ms * 1e-3
    backward_s = 2e-3 * overheads.split_ms if split else action_s
    costs = [
        _more(
            cost,
            forward_s=action_s,
            backward_s=backward_s,
            forward_call_s=action_s,
            backward_call_s=backward_s,
        )
        for cost in _costs(line, session, line.stages * (2 if split else 1))
    ]
    return pipeline(
        name,
        costs,
        processes=line.stages,
        microbatches=line.microbatches,
        batch_size=line.batch_size,
    )


def _stages(line: Line, session: Session, overheads: Overheads) -> Any:
    unit_s = _unit_s(line, session)
    local, share = line.method == "stages_local", line.share or 0.0
    costs: list[StageCost] = []
    for k, cost in enumerate(_costs(line, session, line.stages)):
        more = {"forward_s": overheads.stage_ms * 1e-3}
        if k:  # the gradient of its input is computed where somebody wants it
            more["backward_s"] = -unit_s * (1.0 if local else 1 - share)
        if k + 1 < line.stages:
            if local:
                more["local_s"] = 3 * _CLASSES / line.width * unit_s  # a linear head
            else:
                parameters = (line.width + _CLASSES) * line.width
                more["credit_s"] = unit_s
                more["observe_s"] = unit_s + _UPDATE_S * parameters
        costs.append(_more(cost, **more))
    return decoupled(
        costs,
        link=_network(line, session, overheads),
        share=share,
        listens=not local,
        codec=CODECS[line.wire_dtype],
        batch_size=line.batch_size,
        name=line.method,
    )


def _more(cost: StageCost, **more: float) -> StageCost:
    values = {f.name: getattr(cost, f.name) for f in fields(cost)}
    return StageCost(**{**values, **{name: max(0.0, values[name] + by) for name, by in more.items()}})


def _network(line: Line, session: Session, overheads: Overheads) -> Network:
    rate = math.inf if line.mbit_s is None else line.mbit_s
    late_ms = 2 * overheads.relay_ms if line.emulated else 0.0
    link = Link.of(rtt_ms=line.rtt_ms + late_ms, mbit_s=rate / (_HEADERS if line.emulated else 1.0))
    return Network.of(
        link,
        rendezvous=line.share is None,  # gloo's; our own transport has receives waiting
        congestion="bbr" if line.emulated and line.rtt_ms else None,
        burst_bytes=session.burst_bytes,
        startup_s=overheads.message_ms * 1e-3,
        copy_s_per_byte=1e-9 * (overheads.relay_ns if line.emulated else overheads.copy_ns),
    )


def _machines(line: Line, session: Session, overheads: Overheads) -> list[Machine]:
    """Return the one machine on which all processes run."""
    slow: list[float] = [1.0]
    for active in range(2, line.stages + 1):
        known = session.independent.get((line.batch_size, active))
        if known is None:
            others = [v for (_, n), v in session.independent.items() if n == active]
            known = max(others, default=slow[-1] * max(1.0, active / CORES))
        shared = known / max(1.0, active / CORES)
        slow.append(max(1.0, shared) * (overheads.crowd if active > CORES else 1.0))
    return [Machine(tuple(range(line.stages)), CORES, tuple(slow))]

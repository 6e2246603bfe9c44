"""Synchronous pipelines, from the tables of `torch.distributed.pipelining`: which microbatch is where when.

The tables are PyTorch's own, made without processes. They say in which order a process computes. How it communicates
in between is that of PyTorch's executors:

::

    gpipe                   ask, wait, F, send                    … and at last wait until all is sent
    1f1b, warm-up           ask, wait, F, wait for the last send, send
    1f1b, steady            send F and ask for B together, wait for both, B, send B and ask for F together, …
    interleaved, zero       send when computed; ask where the table says; wait where it is needed
    bubble
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from torch import nn
from torch.distributed.pipelining import schedules as torch_schedules

from ...core import ConfigError
from ..actions import Action, Compute, Job, Mark, Post, Send, Wait, WaitSent
from ..costs import StageCost

__all__ = ["SCHEDULES", "pipeline"]

#: Schedules by name: PyTorch's class, and parts of the network in each process.
SCHEDULES = {
    "gpipe": ("ScheduleGPipe", 1),
    "1f1b": ("Schedule1F1B", 1),
    "interleaved_1f1b": ("ScheduleInterleaved1F1B", 2),
    "zero_bubble": ("ScheduleInterleavedZeroBubble", 2),
    "zero_bubble_v": ("ScheduleZBVZeroBubble", 2),
}

_V_SHAPED = ("zero_bubble_v",)


def pipeline(
    name: str,
    costs: Sequence[StageCost],
    *,
    processes: int,
    microbatches: int,
    batch_size: int = 1,
    steps: int = 3,
    wire_bytes: float | None = None,
) -> Job:
    """Return the job of a synchronous pipeline.

    Args:
        name: one of `SCHEDULES`.
        costs: of each part of the network for the whole batch, from the bottom: one a process, or two for schedules
            whose processes have two parts.
        processes: how many.
        microbatches: parts of a batch.
        batch_size: examples of a step.
        steps: to simulate, 2 or more; all but the first are measured.
        wire_bytes: of a microbatch's activation or gradient on the wire; None for those of the costs.

    Raises:
        ConfigError: if the name is unknown, numbers do not fit, or PyTorch refuses the schedule.
    """
    if name not in SCHEDULES:
        raise ConfigError(f"schedule '{name}': expected one of {', '.join(SCHEDULES)}")
    _, chunks = SCHEDULES[name]
    if len(costs) != processes * chunks:
        raise ConfigError(
            f"{len(costs)} parts of the network for {processes} processes: the schedule '{name}' has {chunks} in each"
        )
    table, ranks = _table(name, processes, microbatches)
    parts = [cost.microbatch(microbatches) for cost in costs]
    sizes = [part.output_bytes if wire_bytes is None else wire_bytes for part in parts]
    maker = _Maker(name, parts, sizes, ranks, microbatches)
    rows = [maker.actions(rank, table[rank]) for rank in range(processes)]
    updates = [
        sum(cost.optimizer_s for k, cost in enumerate(costs) if ranks[k] == rank) for rank in range(processes)
    ]

    def programs() -> list[Iterator[Action]]:
        return [
            _steps(row, update_s, steps, microbatches) for row, update_s in zip(rows, updates, strict=True)
        ]

    return Job(name, programs, processes, steps, batch_size=batch_size)


def _steps(row: Sequence[Action], update_s: float, steps: int, microbatches: int) -> Iterator[Action]:
    """Yield the actions of all steps: those of one, with the numbers of microbatches moved on."""
    for step in range(steps):
        by = step * microbatches
        for action in row:
            if isinstance(action, Compute):
                yield action._replace(batch=action.batch + by)
            elif not isinstance(action, Mark):
                kind, stage, batch = action.tag  # type: ignore[union-attr]
                yield action._replace(tag=(kind, stage, batch + by))  # type: ignore[union-attr, call-arg]
        yield Compute("update", step, update_s)
        yield Mark(step)


def _table(name: str, processes: int, microbatches: int) -> tuple[dict[int, list[Any]], list[int]]:
    """Return PyTorch's table of each process, and the process of each part."""
    if processes < 2 or microbatches < 1:
        raise ConfigError(f"{processes} processes, {microbatches} microbatches: expected 2 and 1, or more")
    kind, chunks = SCHEDULES[name]
    made: Any = getattr(torch_schedules, kind)
    total = processes * chunks
    ranks = [k % processes for k in range(total)]
    if name in _V_SHAPED:
        ranks = [*range(processes), *reversed(range(processes))]
    stages = [
        SimpleNamespace(
            stage_index=k,
            num_stages=total,
            group_size=processes,
            group_rank=0,
            is_first=k == 0,
            is_last=k == total - 1,
            has_backward=True,
            submod=nn.Identity(),
        )
        for k in range(total)
        if ranks[k] == 0
    ]
    try:
        schedule = made(stages if chunks > 1 else stages[0], microbatches, lambda *_: None)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ConfigError(
            f"schedule '{name}' with {processes} processes and {microbatches} microbatches is refused by PyTorch: "
            f"{' '.join(str(error).split())}"
        ) from None
    if chunks == 1:
        rows = {rank: [a for a in row if a is not None] for rank, row in schedule.pipeline_order.items()}
        return {rank: _numbered(row) for rank, row in rows.items()}, ranks
    return schedule.pipeline_order_with_comms, ranks


def _numbered(row: list[Any]) -> list[Any]:
    """Number the passes of one stage from 0, in their order.

    PyTorch 2.13 prints the forward passes of the last stage of 1F1B from 1; its executor runs them from 0.
    """
    seen: dict[str, int] = {}
    found: list[Any] = []
    for action in row:
        kind = action.computation_type.value
        if action.microbatch_index is not None:
            action = action._replace(microbatch_index=seen.setdefault(kind, 0))
            seen[kind] += 1
        found.append(action)
    return found


class _Maker:
    """Makes actions from a table."""

    def __init__(
        self, name: str, parts: Sequence[StageCost], sizes: Sequence[float], ranks: Sequence[int], count: int
    ) -> None:
        self._name = name
        self._parts = parts
        self._sizes = sizes
        self._ranks = ranks
        self._count = count

    def actions(self, rank: int, table: Sequence[Any]) -> list[Action]:
        """Return the actions of a process for one step, without its update."""
        if self._name == "gpipe":
            return list(self._gpipe(table))
        if self._name == "1f1b":
            return list(self._one_forward_one_backward(table))
        return list(self._from_table(table))

    def _gpipe(self, table: Sequence[Any]) -> Iterator[Action]:
        sent: list[Send] = []
        for kind, stage, batch in _passes(table):
            if kind == "B" and sent and sent[-1].tag[0] == "F":
                yield from (WaitSent(send.tag) for send in sent)
                sent = []
            if (need := self._need(kind, stage, batch)) is not None:
                yield need
            yield self._compute(kind, stage, batch)
            if (send := self._send(kind, stage, batch)) is not None:
                yield send
                sent.append(send)
        yield from (WaitSent(send.tag) for send in sent)

    def _one_forward_one_backward(self, table: Sequence[Any]) -> Iterator[Action]:
        last: Send | None = None  # sent, and not waited for
        held: Send | None = None  # to be sent together with the next question
        passes = list(_passes(table))
        for n, (kind, stage, batch) in enumerate(passes):
            need = self._need(kind, stage, batch)
            if need is not None:
                yield Post(*need)
            if held is not None:
                yield held
                yield WaitSent(held.tag)
                held = None
            if need is not None:
                yield need
            yield self._compute(kind, stage, batch)
            send = self._send(kind, stage, batch)
            following = passes[n + 1][0] if n + 1 < len(passes) else kind
            if send is None:
                continue
            if following != kind:
                if last is not None:
                    yield WaitSent(last.tag)
                    last = None
                held = send
                continue
            if last is not None:
                yield WaitSent(last.tag)
            yield send
            last = send
        if held is not None:
            yield held
            last = held
        if last is not None:
            yield WaitSent(last.tag)

    def _from_table(self, table: Sequence[Any]) -> Iterator[Action]:
        sent: list[Send] = []
        for action in table:
            kind, stage, batch = action.computation_type.value, action.stage_index, action.microbatch_index
            if kind in ("RECV_F", "RECV_B"):
                need = self._need(kind[-1], stage, batch)
                assert need is not None
                yield Post(*need)
            elif kind in ("SEND_F", "SEND_B"):
                send = self._send(kind[-1], stage, batch)
                assert send is not None
                yield send
                sent.append(send)
            elif kind in ("F", "B", "I", "W"):
                if (
                    kind != "W"
                    and (need := self._need("F" if kind == "F" else "B", stage, batch)) is not None
                ):
                    yield need
                yield self._compute(kind, stage, batch)
        yield from (WaitSent(send.tag) for send in reversed(sent))

    def _need(self, kind: str, stage: int, batch: int) -> Wait | None:
        """Return what a pass needs from another process."""
        source = stage - 1 if kind == "F" else stage + 1
        if not 0 <= source < len(self._ranks) or self._ranks[source] == self._ranks[stage]:
            return None
        return Wait((kind, stage, batch), self._ranks[source])

    def _send(self, kind: str, stage: int, batch: int) -> Send | None:
        """Return what another process needs from a pass."""
        to = stage + 1 if kind == "F" else stage - 1
        if not 0 <= to < len(self._ranks) or self._ranks[to] == self._ranks[stage]:
            return None
        return Send((kind, to, batch), self._ranks[to], self._sizes[min(stage, to)])

    def _compute(self, kind: str, stage: int, batch: int) -> Compute:
        part = self._parts[stage]
        if kind == "F":
            return Compute("forward", batch, part.forward_s, stage, takes=part.held_bytes)
        if kind == "B":
            return Compute("backward", batch, part.backward_s, stage, frees=part.held_bytes)
        inputs_s = part.backward_s / 2 if part.backward_input_s is None else part.backward_input_s
        if kind == "I":
            return Compute("backward_input", batch, inputs_s, stage)
        weights_s = max(0.0, part.backward_s - inputs_s)
        return Compute("backward_weight", batch, weights_s, stage, frees=part.held_bytes)


def _passes(table: Sequence[Any]) -> Iterator[tuple[str, int, int]]:
    for action in table:
        if action.computation_type.value in ("F", "B"):
            yield action.computation_type.value, action.stage_index, action.microbatch_index

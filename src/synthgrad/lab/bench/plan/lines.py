"""Lines of ``bench pipeline``, and what the one-process lines beside them say of costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from ....core.errors import DataError
from ...records import FILE, Record, read

__all__ = ["Line", "Session", "read_sessions"]

_ALONE = ("backprop", "backprop_all_threads", "backprop_microbatches", "independent")
#: Of data parallel training: segments of 1 MiB, two of them under way.
_BULK_BYTES = float(2 << 20)
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Line:
    """What a line of ``bench pipeline`` measures.

    Attributes:
        method: as there.
        stages, layers, width, batch_size: of processes, network and batches.
        microbatches: parts of a batch; None for methods that do not cut it.
        variant: of a schedule that has several.
        share: of the messages that is sent, for our methods; None for others.
        wire_dtype: of what our methods send.
        rtt_ms, mbit_s: of the link; no rate for no limit.
        emulated: whether a link is emulated; the loopback device otherwise.
        measured_ms: median time of a step, with the tenth and the ninth decile; None where it was not measured.
    """

    method: str
    stages: int
    layers: int
    width: int
    batch_size: int
    microbatches: int | None = None
    variant: str | None = None
    share: float | None = None
    wire_dtype: str = "float32"
    rtt_ms: float = 0.0
    mbit_s: float | None = None
    emulated: bool = False
    measured_ms: tuple[float, float, float] | None = None

    @classmethod
    def of(cls, record: Record) -> Line:
        """Return the line of a record."""
        cell, metrics = record.cell, record.metrics
        step, low, high = (metrics.number(f"step_ms_{name}") for name in ("median", "p10", "p90"))
        return cls(
            record.method,
            stages=cell["stages"],
            layers=cell["layers"],
            width=cell["width"],
            batch_size=cell["batch_size"],
            microbatches=cell["microbatches"],
            variant=cell["variant"],
            share=cell["observe_prob"],
            wire_dtype=cell["wire_dtype"],
            rtt_ms=cell["rtt_ms"],
            mbit_s=cell["mbit_s"],
            emulated=cell["link"] != "loopback",
            measured_ms=None if step is None or low is None or high is None else (step, low, high),
        )

    @property
    def is_alone(self) -> bool:
        """Whether it is a one-process line, from which costs come."""
        return self.method in _ALONE

    @property
    def microbatch_bytes(self) -> float:
        """Bytes of what crosses between two stages for a microbatch, or for a batch that is not cut."""
        return _FLOAT_BYTES * self.width * self.batch_size / (self.microbatches or 1)


@dataclass(frozen=True, slots=True)
class Session:
    """Lines that were measured in one run, in the same processes.

    Attributes:
        name: of the folder of records.
        lines: those to predict, in the order of the file.
        backprop_ms: time of a step of one process.
        microbatch_ms: by batch size, what each further microbatch costs one process; of all sessions of the machine.
        independent: by batch size and number of processes, the time of a step of processes that have nothing to do with
            each other, over that of one alone; of all sessions.
        sizes: layers, width and batch size of what was trained.
        emulated: whether a link was emulated.
        machine: on which they were measured.
    """

    name: str
    lines: tuple[Line, ...]
    backprop_ms: float
    microbatch_ms: Mapping[int, float] = field(default_factory=dict[int, float])
    independent: Mapping[tuple[int, int], float] = field(default_factory=dict[tuple[int, int], float])
    sizes: tuple[int, int, int] = (0, 0, 0)
    emulated: bool = False
    machine: str = ""

    @property
    def burst_bytes(self) -> float:
        """The largest burst that connections have carried: data parallel training's, or the first microbatch's."""
        if any(line.method == "ddp" for line in self.lines):
            return _BULK_BYTES
        return max((line.microbatch_bytes for line in self.lines if line.microbatches), default=0.0)


def read_sessions(folders: Iterable[Path]) -> list[Session]:
    """Return the sessions of folders with records of ``bench pipeline``, in the order of their lines.

    Raises:
        DataError: if a folder has none, or a session lacks the line of one process.
    """
    found: list[tuple[str, str, list[Line]]] = []
    for folder in folders:
        files = sorted(folder.rglob(FILE)) if folder.is_dir() else []
        records = [r for file in files for r in read(file)[0] if r.experiment == "bench/pipeline"]
        if not records:
            raise DataError(
                f"{folder}: no records of bench pipeline; expected a folder that 'synthgrad bench pipeline --out' has "
                "filled"
            )
        found += _sessions(folder.name, records)
    microbatch_ms = _microbatches([lines for *_, lines in found])
    independent = _independent([lines for *_, lines in found])
    return [
        Session(
            name,
            tuple(line for line in lines if not line.is_alone and line.measured_ms is not None),
            _backprop_ms(name, lines),
            microbatch_ms,
            independent,
            (lines[0].layers, lines[0].width, lines[0].batch_size),
            lines[0].emulated,
            machine,
        )
        for name, machine, lines in found
    ]


def _sessions(name: str, records: Sequence[Record]) -> list[tuple[str, str, list[Line]]]:
    """Divide the records of a folder: what has one network, link and number of stages was measured together."""
    found: dict[tuple[object, ...], list[Line]] = {}
    for record in records:
        line = Line.of(record)
        key = (line.stages, line.layers, line.width, line.batch_size, line.rtt_ms, line.mbit_s, line.emulated)
        found.setdefault(key, []).append(line)
    machine = records[0].env.device or ""
    return [(name, machine, lines) for lines in found.values()]


def _step_ms(line: Line) -> float:
    return math.nan if line.measured_ms is None else line.measured_ms[0]


def _backprop_ms(name: str, lines: Sequence[Line]) -> float:
    for line in lines:
        if line.method == "backprop" and line.measured_ms is not None:
            return _step_ms(line)
    first = lines[0]
    raise DataError(
        f"{name}: no measured line of method backprop beside {first.method} with {first.stages} stages and batch "
        f"{first.batch_size}, from which costs come; measure it in the same run"
    )


def _microbatches(sessions: Sequence[Sequence[Line]]) -> dict[int, float]:
    """Return, by batch size, what each further microbatch costs one process: least squares through the whole batch."""
    sums: dict[int, tuple[float, float]] = {}
    for lines in sessions:
        whole = next((_step_ms(line) for line in lines if line.method == "backprop"), math.nan)
        for line in lines:
            if line.method == "backprop_microbatches" and line.microbatches and line.measured_ms:
                further = line.microbatches - 1
                a, b = sums.get(line.batch_size, (0.0, 0.0))
                sums[line.batch_size] = (a + further * (_step_ms(line) - whole), b + further**2)
    return {batch_size: a / b for batch_size, (a, b) in sums.items() if b}


def _independent(sessions: Sequence[Sequence[Line]]) -> dict[tuple[int, int], float]:
    found: dict[tuple[int, int], list[float]] = {}
    for lines in sessions:
        whole = next((_step_ms(line) for line in lines if line.method == "backprop"), math.nan)
        for line in lines:
            if line.method == "independent" and line.measured_ms:
                found.setdefault((line.batch_size, line.stages), []).append(_step_ms(line) / whole)
    return {key: fmean(values) for key, values in found.items()}

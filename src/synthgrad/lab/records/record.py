"""A line of results as typed values, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .parts import Cell, Config, Env, Estimate, Graph, Metrics, OddPart, Part, Point, Time

__all__ = ["SCHEMA", "Record"]

SCHEMA = 1

#: Keys that stand in every line that this package writes, in this order.
_ALWAYS = (
    *("schema", "experiment", "tier", "method", "seed", "cell", "steps", "batch_size", "metrics"),
    *("time", "curve", "status", "error", "config", "env"),
)
#: Keys that stand where there is something to say.
_SOMETIMES = ("resumed_at", "graph", "estimate", "tree", "round")
_PARTS: Mapping[str, type[Part]] = {
    "cell": Cell,
    "metrics": Metrics,
    "time": Time,
    "config": Config,
    "env": Env,
    "graph": Graph,
    "estimate": Estimate,
}
_OPTIONAL_PARTS = ("graph", "estimate")
_TEXTS = ("experiment", "method", "status")
_OPTIONAL_TEXTS = ("tier", "error")
_WHOLE = ("seed", "steps", "batch_size")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Record(Mapping[str, Any]):
    """One run, or one thing that a benchmark measured.

    It is also a mapping, of the line that it stands for: `record["seed"]`.

    Attributes:
        experiment: name of the experiment, ``bench/NAME`` of a benchmark.
        method: name of the method, or of the peer.
        tier: how large the experiment was, or ``custom``.
        seed: of everything random.
        cell: what was trained or measured.
        steps: of the training, or rounds of a benchmark.
        batch_size: examples in a batch.
        metrics: what came out.
        time: of the training.
        curve: measurements on the way.
        status: ``ok``, ``diverged`` or ``failed``.
        error: what went wrong, in a line; None if nothing did.
        config: all settings.
        env: machine and versions.
        resumed_at: the steps at which the run went on from a snapshot.
        graph: modules and interfaces; None where nothing was cut or nobody asked.
        estimate: what was worked out before the run.
        tree: which of two trees of the sources was measured, where a benchmark compares them.
        round: of that benchmark.
        more: keys of other programs, of later versions and of experiments of users' own.
        keys_in_line: keys that the line had, in their order; None for those that a new line gets.
    """

    experiment: str
    method: str
    tier: str | None = None
    seed: int | None = None
    cell: Cell = field(default_factory=Cell)
    steps: int | None = None
    batch_size: int | None = None
    metrics: Metrics = field(default_factory=Metrics)
    time: Time = field(default_factory=Time)
    curve: tuple[Point, ...] = ()
    status: str = "ok"
    error: str | None = None
    config: Config = field(default_factory=Config)
    env: Env = field(default_factory=Env)
    resumed_at: tuple[int, ...] | None = None
    graph: Graph | None = None
    estimate: Estimate | None = None
    tree: str | None = None
    round: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])
    keys_in_line: tuple[str, ...] | None = None

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Record:
        """Return the record of a line, checked.

        Parts that are missing pass, and so do keys that are not known.

        Args:
            line: an object as `json` reads it; a record is returned as it is.

        Raises:
            OddPart: names the first part that is not what it must be.
        """
        if isinstance(line, Record):
            return line
        known: dict[str, Any] = {"experiment": "", "method": "", "status": ""}
        more: dict[str, Any] = {}
        for name, value in line.items():
            if name in _PARTS:
                known[name] = None if value is None and name in _OPTIONAL_PARTS else _part(name, value)
            elif name == "curve":
                known[name] = tuple(map(Point, _list(name, value)))
            elif name == "resumed_at" and isinstance(value, list | tuple):
                known[name] = tuple(value)
            elif name in _TEXTS or name in _OPTIONAL_TEXTS:
                known[name] = _checked(
                    name, value, isinstance(value, str) or (value is None and name in _OPTIONAL_TEXTS)
                )
            elif name in _WHOLE:
                whole = isinstance(value, int) and not isinstance(value, bool)
                known[name] = _checked(name, value, whole or value is None)
            elif (name == "tree" and isinstance(value, str)) or (name == "round" and isinstance(value, int)):
                known[name] = value
            elif name != "schema":
                more[name] = value
        return cls(**known, more=more, keys_in_line=tuple(line))

    def line(self) -> dict[str, Any]:
        """Return the object that stands for the record in a file; its parts are shared, not copied."""
        values: dict[str, Any] = {name: getattr(self, name) for name in (*_ALWAYS[1:], *_SOMETIMES)}
        values |= {"schema": SCHEMA, "curve": [dict(point) for point in self.curve]}
        values |= {name: dict(values[name]) for name in _PARTS if values[name] is not None}
        if self.resumed_at is not None:
            values["resumed_at"] = list(self.resumed_at)
        values |= self.more
        if self.keys_in_line is not None:
            return {name: values[name] for name in self.keys_in_line}
        said = [name for name in _SOMETIMES if values[name] is not None]
        return {name: values[name] for name in (*_ALWAYS, *said, *self.more)}

    def __getitem__(self, key: str) -> Any:
        if key in _PARTS or key in _TEXTS:
            if self.keys_in_line is not None and key not in self.keys_in_line:
                raise KeyError(key)
            return getattr(self, key)
        return self.line()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.line())

    def __len__(self) -> int:
        return len(self.line())


def _part(name: str, value: Any) -> Part:
    return _PARTS[name](_checked(name, value, isinstance(value, Mapping)))


def _list(name: str, value: Any) -> Any:
    return _checked(name, value, isinstance(value, list | tuple))


def _checked(name: str, value: Any, fits: bool) -> Any:
    if not fits:
        raise OddPart(name)
    return value

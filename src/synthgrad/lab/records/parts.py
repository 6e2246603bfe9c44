"""The parts of a record as typed values: what a line of results holds, checked once when it is read.

A part stays a mapping, because every experiment adds keys of its own and all of them must survive reading and
writing, `null` included. What the package knows has an attribute: `cell.layers`, `env.threads`. An attribute is None
where the part lacks the key or holds another kind of value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

__all__ = [
    "Cell",
    "Config",
    "Env",
    "Estimate",
    "Graph",
    "GraphInterface",
    "GraphModule",
    "Metrics",
    "OddPart",
    "Part",
    "Point",
    "Rule",
    "Time",
    "as_number",
]

_MOST = 1e30  # no loss, time or size is larger; a plot's axis cannot be
_NOTHING: Mapping[str, Any] = {}
_DEEPEST = 6  # lists and objects inside each other, in settings


class OddPart(ValueError):
    """A part of a line is not what it must be; the message is the name of the part."""


def as_number(value: object) -> float | None:
    """Return a number as a float; None for all else: truth values, infinities, and what nobody can have measured."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # JSON has integers of any length
        return None
    return found if math.isfinite(found) and abs(found) < _MOST else None


class _Named:
    """Descriptor of a part's key, which has the attribute's name."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name


class _Number(_Named):
    def __get__(self, part: Part, owner: type) -> float | None:
        return as_number(part.get(self.name))


class _Text(_Named):
    def __get__(self, part: Part, owner: type) -> str | None:
        found = part.get(self.name)
        return found if isinstance(found, str) else None


class _Flag(_Named):
    def __get__(self, part: Part, owner: type) -> bool | None:
        found = part.get(self.name)
        return found if isinstance(found, bool) else None


class _Value(_Named):
    """A key that holds several kinds of values."""

    def __get__(self, part: Part, owner: type) -> Any:
        return part.get(self.name)


class _Names(_Named):
    """A list of texts; empty where there is none."""

    def __get__(self, part: Part, owner: type) -> tuple[str, ...]:
        found = part.get(self.name)
        return tuple(str(v) for v in found) if isinstance(found, list | tuple) else ()


class Part(Mapping[str, Any]):
    """An object of a line: a mapping that nobody changes, with attributes for the keys that are known.

    Args:
        values: what the line holds; kept as it is.

    Raises:
        OddPart: if the values are no object, or one of them is of a kind that this part does not have.
    """

    __slots__ = ("_values",)
    part: ClassVar[str] = "part"  # its name in a line

    def __init__(self, values: Mapping[str, Any] = _NOTHING) -> None:
        if not isinstance(values, Mapping) or not all(self._fits(k, v) for k, v in values.items()):
            raise OddPart(self.part)
        self._values: Mapping[str, Any] = values._values if isinstance(values, Part) else values

    @classmethod
    def _fits(cls, key: str, value: object) -> bool:
        """Is the value of a kind that the part may hold? Here: text, number, truth value, null, or a list of these."""
        return all(map(_is_plain, value)) if isinstance(value, list | tuple) else _is_plain(value)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self._values)!r})"

    def number(self, key: str) -> float | None:
        """Return the number of that key; None if it is missing, no number or not finite."""
        return as_number(self._values.get(key))

    def without(self, *keys: str) -> Self:
        """Return the part without some of its keys."""
        return type(self)({k: v for k, v in self._values.items() if k not in keys})


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _is_figure(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_setting(value: object, deep: int = _DEEPEST) -> bool:
    if isinstance(value, Mapping):
        return deep > 0 and all(_is_setting(v, deep - 1) for v in value.values())
    if isinstance(value, list | tuple):
        return deep > 0 and all(_is_setting(v, deep - 1) for v in value)
    return _is_plain(value)


class Cell(Part):
    """What is trained or measured: every parameter that tells a line's setting from another's."""

    __slots__ = ()
    part = "cell"

    data, arch, engine, variant, precision = _Text(), _Text(), _Text(), _Text(), _Text()
    layers, width, batch_size = _Value(), _Value(), _Value()
    at = _Names()
    compiled = _Flag()
    update_prob, observe_prob, dropout = _Number(), _Number(), _Number()
    unroll, horizon, period, segments = _Number(), _Number(), _Number(), _Number()
    threads, stages, microbatches, rounds = _Number(), _Number(), _Number(), _Number()
    rtt_ms, mbit_s, link, wire_dtype, window = _Number(), _Number(), _Text(), _Text(), _Text()
    normalisation, activation, answers = _Text(), _Text(), _Text()
    network, library, loop, signal, input = _Text(), _Text(), _Text(), _Text(), _Text()
    rank, moment, fault = _Value(), _Value(), _Value()


class _Figures(Part):
    __slots__ = ()

    @classmethod
    def _fits(cls, key: str, value: object) -> bool:
        return _is_plain(value)


class Metrics(_Figures):
    """What a run or a measurement came to; the unit stands in the key: ``_ms``, ``_bytes``, ``ratio_…``."""

    __slots__ = ()
    part = "metrics"

    step_ms_median, step_ms_p10, step_ms_p90 = _Number(), _Number(), _Number()
    test_error_pct, val_error_pct, time_to_target_s = _Number(), _Number(), _Number()
    updates_skipped_share, ratio_to_backprop, ratio_arithmetic = _Number(), _Number(), _Number()
    target_accuracy_pct, is_best, sentence, refused_at = _Number(), _Flag(), _Text(), _Text()
    max_relative_deviation, control_deviation, exact, refused = _Number(), _Number(), _Number(), _Number()
    skipped, lost_s, others_ended_s = _Number(), _Number(), _Number()


class Time(_Figures):
    """How long a training took, without its evaluations."""

    __slots__ = ()
    part = "time"

    train_s, step_ms_median, step_ms_p10, step_ms_p90 = _Number(), _Number(), _Number(), _Number()


class Estimate(_Figures):
    """What was worked out before a run."""

    __slots__ = ()
    part = "estimate"

    ratio_to_backprop = _Number()

    @classmethod
    def _fits(cls, key: str, value: object) -> bool:
        return _is_figure(value)


class Env(Part):
    """Machine and versions; ``other_load``: processors that other programs kept busy when the run began."""

    __slots__ = ()
    part = "env"

    device, torch, python, synthgrad, commit = _Text(), _Text(), _Text(), _Text(), _Text()
    threads, jobs, other_load = _Number(), _Number(), _Number()
    dirty = _Flag()


class Point(Part):
    """A point of a curve."""

    __slots__ = ()
    part = "curve"

    step, elapsed_s = _Number(), _Number()

    @classmethod
    def _fits(cls, key: str, value: object) -> bool:
        if key != "quality" or value is None:
            return _is_plain(value)
        if not isinstance(value, Mapping):
            return False
        measured = [v for v in value.values() if v is not None]
        return all(isinstance(m, Mapping) and all(map(_is_figure, m.values())) for m in measured)

    @property
    def quality(self) -> Mapping[str, Mapping[str, float | None]]:
        """How good the credit was, by interface and by measure."""
        measured: Mapping[str, Mapping[str, object] | None] = self.get("quality") or {}
        return {name: {k: as_number(v) for k, v in (found or {}).items()} for name, found in measured.items()}


class Rule(Part):
    """The settings of a rule; empty where a line names its rule by a text."""

    __slots__ = ()
    part = "config"

    hidden, aux_hidden, kernel = _Value(), _Value(), _Value()
    like_layer, norm, constant_lr, per_example = _Flag(), _Flag(), _Flag(), _Flag()
    receiver, true_messages = _Flag(), _Flag()
    lr_factor, decay, delay, alpha = _Number(), _Number(), _Number(), _Number()
    window, mix, aux_weight = _Number(), _Number(), _Number()

    @classmethod
    def _fits(cls, key: str, value: object) -> bool:
        return _is_setting(value, _DEEPEST - 1)


class Config(Part):
    """All settings of a run."""

    __slots__ = ()
    part = "config"

    lr, target_error_pct, spread, rounds = _Number(), _Number(), _Number(), _Number()
    hold_out, precision, compiled, augment, library_version = _Value(), _Value(), _Value(), _Value(), _Value()

    @classmethod
    def _fits(cls, key: str, value: object) -> bool:
        return _is_setting(value, _DEEPEST - 1) and (
            key != "rule" or value is None or isinstance(value, Mapping | str)
        )

    @property
    def rule(self) -> Rule:
        """Settings of the rule."""
        found = self.get("rule")
        return Rule(found) if isinstance(found, Mapping) else Rule()

    @property
    def rule_text(self) -> str:
        """The rule in words, where a line has it so; empty elsewhere."""
        found = self.get("rule")
        return found if isinstance(found, str) else ""


class GraphModule(Part):
    """A module of the decoupled network: what it is made of, and at which interfaces it begins and ends."""

    __slots__ = ()
    part = "graph"
    name = _Text()
    ends, inputs, parts = _Names(), _Names(), _Names()
    num_parameters = _Number()


class GraphInterface(Part):
    """An interface with its rule."""

    __slots__ = ()
    part = "graph"
    name, rule = _Text(), _Text()
    shape, credit, observes = _Value(), _Value(), _Value()
    num_parameters = _Number()


class Graph(Part):
    """Modules in the order of the forward pass, and the interfaces between them."""

    __slots__ = ()
    part = "graph"
    engine = _Text()

    @classmethod
    def _fits(cls, key: str, value: object) -> bool:
        if key not in ("modules", "interfaces"):
            return True
        kind = GraphModule if key == "modules" else GraphInterface
        return isinstance(value, list | tuple) and all(isinstance(kind(entry), Part) for entry in value)

    @property
    def modules(self) -> tuple[GraphModule, ...]:
        """The modules, in the order of the forward pass."""
        return tuple(map(GraphModule, self.get("modules", ())))

    @property
    def interfaces(self) -> tuple[GraphInterface, ...]:
        """The interfaces."""
        return tuple(map(GraphInterface, self.get("interfaces", ())))

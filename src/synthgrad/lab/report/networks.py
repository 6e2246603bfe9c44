"""The table of ``bench networks``: a row for each network, a column for each engine."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ..records import Record
from .sheet import Column, Sheet, sheet_of
from .words import DASH, text

__all__ = ["networks_sheet"]

#: An engine, and whether there is dropout.
_Kind = tuple[str, bool]
_HEADINGS: Mapping[_Kind, str] = {
    ("plain", False): "plain loop",
    ("in_process", False): "in process",
    ("stages", False): "two stages",
    ("layer_parallel", False): "layer-parallel",
    ("plain", True): "plain loop, dropout",
    ("in_process", True): "in process, dropout",
}
_QUOTED = re.compile(r"'[^']*'")

#: A network's lines by engine; of lines that were measured again, the last.
_Row = dict[_Kind, Record]


def networks_sheet(records: Sequence[Record]) -> Sheet:
    """Return the lines as one table.

    Args:
        records: the lines of the benchmark, at least one.
    """
    rows: dict[tuple[str, str], _Row] = {}
    for record in records:
        network = (text(record.cell.network, 60), text(record.cell.library, 30))
        rows.setdefault(network, {})[text(record.method, 40), bool(record.cell.dropout)] = record
    known = {kind for row in rows.values() for kind in row}
    kinds = [kind for kind in _HEADINGS if kind in known] + sorted(known - set(_HEADINGS))
    reasons = _Reasons()

    def engine(kind: _Kind) -> Callable[[_Row], str]:
        return lambda row: reasons.cell(row[kind]) if kind in row else DASH

    sheet = sheet_of(
        "bench/networks",
        [
            Column("network", lambda row: text(_last(row).cell.network, 60), key=True),
            *(Column(_HEADINGS.get(kind, " ".join(map(str, kind))), engine(kind)) for kind in kinds),
            Column(
                "deviation",
                lambda row: _small(max(_found(row, "max_relative_deviation"), default=None)),
                late=True,
            ),
            Column(
                "control", lambda row: _small(min(_found(row, "control_deviation"), default=None)), late=True
            ),
            Column("parameters", _parameters, late=True),
            Column("from", _library, late=True),
        ],
        rows.values(),
        is_bad=lambda row: any(r.status != "ok" for r in row.values()),
    )
    failures, notes = (reasons.lines(of_failures=which) for which in (True, False))
    return replace(sheet, failures=failures, notes=notes)


class _Reasons:
    """The reasons why networks are not exact, each once, with the networks' own names as in the first of them."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._words: list[str] = []
        self._failures: set[int] = set()

    def cell(self, record: Record) -> str:
        """Return what the table says of a line."""
        metrics, error = record.metrics, text(record.error or "", 500)
        if not error:
            return "exact" if metrics.exact == 1 else "not exact"
        said = "refused" if metrics.refused else "skipped" if metrics.skipped else ""
        reason = self._number(error)
        if not said or record.status != "ok":
            self._failures.add(reason)
            deviation = metrics.max_relative_deviation
            said = "failed" if deviation is None else f"deviates by {deviation:.1e}"
        elif metrics.refused_at not in (None, "", "construction"):
            said += f" in {text(metrics.refused_at, 40)}"
        return f"{said} ({reason})"

    def lines(self, *, of_failures: bool) -> tuple[str, ...]:
        """Return the reasons of failures, or the others, in the order of their numbers."""
        numbered = enumerate(self._words, 1)
        return tuple(f"({k}) {words}" for k, words in numbered if (k in self._failures) == of_failures)

    def _number(self, error: str) -> int:
        alike = _QUOTED.sub("'…'", error)  # names of submodules differ from network to network
        if alike not in self._numbers:
            self._words.append(error)
            self._numbers[alike] = len(self._words)
        return self._numbers[alike]


def _last(row: _Row) -> Record:
    return list(row.values())[-1]


def _library(row: _Row) -> str:
    """Return the name of a network's library, with its version where the machine's line does not have it."""
    name, version = text(_last(row).cell.library, 30), _last(row).config.library_version
    return f"{name} {text(version, 20)}" if version and name != "torch" else name


def _parameters(row: _Row) -> str:
    found = _found(row, "parameters")
    return f"{max(found):,.0f}" if found else DASH


def _small(value: float | None) -> str:
    return DASH if value is None else f"{value:.0e}" if value else "0"


def _found(row: _Row, name: str) -> list[float]:
    return [value for r in row.values() if (value := r.metrics.number(name)) is not None]

"""The table of ``bench networks``: a row for each network, a column for each engine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..records import Record
from .fields import number, part, status, text
from .sheet import DASH, Sheet, as_markdown

__all__ = ["NETWORKS_ABOUT", "networks_markdown", "networks_sheet"]

NETWORKS_ABOUT = (
    "Small networks in float64, each trained for some batches of several sizes by every engine and by plain "
    "backpropagation, from the same weights. “Exact”: with the true gradient no parameter and no buffer deviates from "
    "backpropagation by more than 10⁻⁹ of its largest entry. “Deviation” is the largest of the row; “control” is the "
    "smallest that was found when the gradients at every cut were made too large by 10⁻⁶. The layer-parallel engine is "
    "compared with the in-process one at the lags that it has by itself, on batches of one size. A number leads to the "
    "reason, below the table."
)

#: Columns by method, and whether there is dropout.
_COLUMNS: Mapping[tuple[str, bool], str] = {
    ("plain", False): "plain loop",
    ("in_process", False): "in process",
    ("stages", False): "two stages",
    ("layer_parallel", False): "layer-parallel",
    ("plain", True): "plain loop, dropout",
    ("in_process", True): "in process, dropout",
}

_QUOTED = re.compile(r"'[^']*'")


def networks_sheet(records: Sequence[Record]) -> Sheet:
    """Return the lines as one table; of lines that were measured again, the last.

    Args:
        records: the lines of the benchmark, at least one.
    """
    rows: dict[tuple[str, str], dict[tuple[str, bool], Record]] = {}
    for record in records:
        cell = part(record, "cell")
        network = (text(cell.get("network"), 60), text(cell.get("library"), 30))
        kind = (text(record.get("method"), 40), bool(number(cell, "dropout")))
        rows.setdefault(network, {})[kind] = record
    known = {kind for row in rows.values() for kind in row}
    columns = [kind for kind in _COLUMNS if kind in known] + sorted(known - set(_COLUMNS))
    reasons = _Reasons()
    lines = [
        (
            network[0],
            _library(row.values()),
            _parameters(row.values()),
            *(reasons.cell(row[kind]) if kind in row else DASH for kind in columns),
            _small(max(_measured(row.values(), "max_relative_deviation"), default=None)),
            _small(min(_measured(row.values(), "control_deviation"), default=None)),
        )
        for network, row in rows.items()
    ]
    headings = [_COLUMNS.get(kind, " ".join(map(str, kind))) for kind in columns]
    return Sheet(
        title="bench/networks",
        headings=("network", "from", "parameters", *headings, "deviation", "control"),
        rows=tuple(lines),
        bad=tuple(any(r.get("status") != "ok" for r in row.values()) for row in rows.values()),
        failures=reasons.lines(of_failures=True),
        notes=reasons.lines(of_failures=False),
    )


def networks_markdown(records: Sequence[Record]) -> str:
    """Return the table for a document, with the reasons as a list under it."""
    sheet = networks_sheet(records)
    said = "".join(f"\n{line}\n" for line in (*sheet.failures, *sheet.notes))
    return as_markdown(sheet) + said.replace("<", "&lt;")


class _Reasons:
    """The reasons why networks are not exact, each once, with the networks' own names as in the first of them."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._words: list[str] = []
        self._failures: set[int] = set()

    def cell(self, record: Record) -> str:
        """Return what the table says of a line."""
        metrics = part(record, "metrics")
        error = text(record.get("error") or "", 500)
        if not error:
            return "exact" if number(metrics, "exact") == 1 else "not exact"
        said = "refused" if number(metrics, "refused") else ""
        said = said or ("skipped" if number(metrics, "skipped") else "")
        reason = self._number(error)
        if not said or status(record) != "ok":
            self._failures.add(reason)
            deviation = number(metrics, "max_relative_deviation")
            said = "failed" if deviation is None else f"deviates by {deviation:.1e}"
        elif (at := text(metrics.get("refused_at") or "", 40)) not in ("", "construction"):
            said += f" in {at}"
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


def _library(row: Iterable[Record]) -> str:
    """Return the name of a network's library, with its version where the machine's line does not have it."""
    last = list(row)[-1]
    name, version = text(part(last, "cell").get("library"), 30), part(last, "config").get("library_version")
    return f"{name} {text(version, 20)}" if version and name != "torch" else name


def _parameters(row: Iterable[Record]) -> str:
    found = _measured(row, "parameters")
    return f"{max(found):,.0f}" if found else DASH


def _small(value: float | None) -> str:
    return DASH if value is None else f"{value:.0e}" if value else "0"


def _measured(row: Iterable[Record], name: str) -> list[float]:
    return [value for r in row if (value := number(part(r, "metrics"), name)) is not None]

"""Tables as text, declared by their columns: what the terminal, the page and the documents all show.

A page has room for seven columns, a phone for the first two or three. `Sheet.fitted` moves what is the same in every
row into a caption, keeps the row's name short so that measurements follow soon, and puts the rest into further tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from .words import DASH, UNSTEADY

__all__ = ["MOST_COLUMNS", "Column", "Fitted", "Sheet", "markdown", "sheet_of"]

MOST_COLUMNS, _MOST_KEYS = 7, 2
#: Headings whose values say by themselves what they are.
_PLAIN = ("layers × width", "network")
_UNSTEADY_NOTE = (
    f"{UNSTEADY[1:-1].capitalize()}: the times behind this ratio scatter widely, or other programs kept the machine "
    "busy; measure again with nothing else running."
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """A column of a table.

    Attributes:
        heading: stands over it.
        cell: text for a row.
        key: does it say what was measured, not what came out? Keys come first.
        late: is it a secondary measure, for a second table where the first is full? A long key that stands last?
        timed: does it depend on the machine?
        optional: is it left out where it says nothing in any row?
        partly: where rows without a value are not concerned: words for the caption, before the value of the others.
    """

    heading: str
    cell: Callable[[T], str]
    key: bool = False
    late: bool = False
    timed: bool = False
    optional: bool = False
    partly: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table of texts.

    Attributes:
        title: what the table is about.
        columns: one for each text of a row; the first names the row.
        rows: texts, as many as there are columns.
        bad: for each row, whether a run of it failed or diverged.
        failures: what went wrong, a line for each such row.
        notes: what a reader must know of the numbers.
        remarks: what else there is to say, where there is room.
    """

    title: str
    columns: tuple[Column[Any], ...]
    rows: tuple[tuple[str, ...], ...]
    bad: tuple[bool, ...]
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def headings(self) -> tuple[str, ...]:
        """The columns' headings."""
        return tuple(column.heading for column in self.columns)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against relying on some of the numbers."""
        return (_UNSTEADY_NOTE,) if any(UNSTEADY in cell for row in self.rows for cell in row) else ()

    def without(self, gone: Callable[[Column[Any]], bool]) -> Sheet:
        """Return the table without some columns."""
        kept = [k for k, column in enumerate(self.columns) if not gone(column)]
        rows = tuple(tuple(row[k] for k in kept) for row in self.rows)
        return replace(self, columns=tuple(self.columns[k] for k in kept), rows=rows)

    def first(self, most: int) -> Sheet:
        """Return the table with its first rows."""
        return replace(self, rows=self.rows[:most], bad=self.bad[:most])

    def fitted(self) -> Fitted:
        """Return the table in parts that fit a page."""
        filled = [_Filled(c, tuple(row[k] for row in self.rows)) for k, c in enumerate(self.columns)]
        keys = [f for f in filled if f.column.key]
        measures = [f for f in filled if not f.column.key]
        # A single row keeps its measures: a caption would be no shorter.
        shared = [f for f in (filled if len(self.rows) > 1 else keys[1:]) if f.common() is not None]
        for group in (keys[:1] if all(f in shared for f in keys) else [], measures):
            if all(f in shared for f in group):  # a table without names or figures is none
                shared = [f for f in shared if f not in group]
        late = [f for f in keys if f not in shared and f.column.late]
        keys = _joined([f for f in keys if f not in shared and not f.column.late])
        measures = [f for f in measures if f not in shared]
        room = MOST_COLUMNS - len(keys) - len(late)
        first = measures if len(measures) <= room else [f for f in measures if not f.column.late][:room]
        rest = [f for f in measures if f not in first]
        chunks = [rest[k : k + room] for k in range(0, len(rest), room)]
        more = tuple(self._part([*keys, *chunk, *late], chunk) for chunk in chunks)
        return Fitted(_caption(shared), self._part([*keys, *first, *late]), more)

    def _part(self, filled: Sequence[_Filled], measured: Sequence[_Filled] = ()) -> Sheet:
        """Return some columns; of secondary measures only the rows that have any."""
        shown = [
            k for k in range(len(self.rows)) if not measured or any(f.texts[k] != DASH for f in measured)
        ]
        rows = tuple(tuple(f.texts[k] for f in filled) for k in shown)
        return Sheet(self.title, tuple(f.column for f in filled), rows, tuple(self.bad[k] for k in shown))


@dataclass(frozen=True, slots=True)
class Fitted:
    """A table in parts that fit a page: what all rows share, the main table, and those of secondary measures."""

    caption: tuple[str, ...]
    main: Sheet
    more: tuple[Sheet, ...]

    @property
    def more_headings(self) -> list[str]:
        """What the further tables show."""
        shown = dict.fromkeys(h for part in self.more for h in part.headings)
        return [h for h in shown if h not in self.main.headings]


@dataclass(frozen=True, slots=True)
class _Filled:
    column: Column[Any]
    texts: tuple[str, ...]

    def common(self) -> str | None:
        """Return the value that all rows share, or all that are concerned; None if there is none."""
        values = set(self.texts)
        if len(values) > 1 and self.column.partly:
            values.discard(DASH)
        return values.pop() if len(values) == 1 else None


def _caption(shared: Sequence[_Filled]) -> tuple[str, ...]:
    """Return a line about what all rows share, and one about what only some are concerned with."""
    lines: dict[str, list[str]] = {}
    for f in shared:
        if (value := f.common()) not in (None, DASH):
            words = f.column.partly if DASH in f.texts else "All rows"
            lines.setdefault(words, []).append(f"{f.column.heading}: {value}")
    return tuple(f"{words}: {'; '.join(found)}." for words, found in lines.items())


def _joined(keys: Sequence[_Filled]) -> list[_Filled]:
    """Return two keys at most: what follows the first is joined, so that measurements are not far."""
    if len(keys) <= _MOST_KEYS:
        return list(keys)

    def said(f: _Filled, k: int) -> str:
        named = f.texts[k][:1].isdigit() and f.column.heading not in _PLAIN
        return f"{f.column.heading} {f.texts[k]}" if named else f.texts[k]

    rows = range(len(keys[0].texts))
    texts = (", ".join(said(f, k) for f in keys[1:] if f.texts[k] != DASH) or DASH for k in rows)
    return [keys[0], _Filled(Column("setting", str, key=True), tuple(texts))]


def sheet_of(
    title: str,
    columns: Sequence[Column[T]],
    items: Iterable[T],
    *,
    is_bad: Callable[[T], bool],
    failures: Iterable[str] = (),
    notes: Iterable[str] = (),
    times: bool = True,
) -> Sheet:
    """Return a table with a row for each item.

    Args:
        title: what it is about.
        columns: what it says of an item; optional ones that say nothing are left out.
        items: at least one.
        is_bad: did a run of the item fail or diverge?
        failures: see `Sheet`.
        notes: see `Sheet`.
        times: are columns of times shown?
    """
    found = list(items)
    rows = tuple(tuple(column.cell(item) for column in columns) for item in found)
    silent = {c.heading for k, c in enumerate(columns) if all(row[k] == DASH for row in rows)}
    failed = tuple(dict.fromkeys(failures))
    sheet = Sheet(title, tuple(columns), rows, tuple(map(is_bad, found)), failed, tuple(notes))
    return sheet.without(lambda c: (c.optional and c.heading in silent) or (c.timed and not times))


def markdown(sheet: Sheet, *, titled: bool = True) -> str:
    """Return a table for a document: under its title, with what went wrong and its notes in a line each."""
    fitted = sheet.fitted()
    blocks = [f"**{sheet.title}**"] if titled else []
    blocks += [_said(line) for line in fitted.caption]
    for part in (fitted.main, *fitted.more):
        blocks.append(
            "\n".join([_row(part.headings), "|---" * len(part.headings) + "|", *map(_row, part.rows)])
        )
    blocks += [_said(line) for line in (*sheet.failures, *sheet.warnings, *sheet.notes)]
    return "\n\n".join(blocks) + "\n"


def _said(line: str) -> str:
    return f"*{line.replace('<', '&lt;')}*"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

"""A grid of test errors as in the paper's Table 1: a row for each network and data set, a column for each method."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..records import Record
from . import published
from .errors import error_cell, failures_of, last_of_each
from .fields import is_bench, is_sparse, key, number, part, text
from .labels import position, rule_settings
from .sheet import DASH, Sheet

__all__ = ["grid_sheets"]

_DATA = ("mnist-10k", "mnist", "cifar10")
_ARCHS = ("fcn", "cnn")
_MOST_GRIDS, _MOST_COLUMNS = 6, 24
_UNITS = {"cnn": "filters"}

#: Records by method, for one row.
_Row = dict[str, list[Record]]


def grid_sheets(records: Iterable[Record], *, least: int = 2) -> list[Sheet]:
    """Return a grid for each tier that has at least ``least`` different networks or data sets.

    Runs stand in it that measured the test error after making every update, with a cut after every layer;
    each row names the settings that its runs share.

    Args:
        records: of any experiments.
        least: how many cells of data, architecture and depth a tier must have to make a grid.
    """
    tiers: dict[str, dict[str, _Row]] = {}
    for record in records:
        if _belongs(record):
            rows = tiers.setdefault(text(record.get("tier"), 20), {})
            rows.setdefault(_row_key(record), {}).setdefault(_column(record), []).append(record)
    found = [(tier, rows) for tier, rows in tiers.items() if _num_cells(rows) >= least]
    return [_sheet(tier, rows) for tier, rows in found[:_MOST_GRIDS]]


def _belongs(record: Record) -> bool:
    if is_bench(record) or is_sparse(record) or not isinstance(record.get("method"), str):
        return False
    cell, config = part(record, "cell"), part(record, "config")
    named = cell.get("arch") in _ARCHS and number(cell, "layers") is not None
    whole = number(cell, "update_prob") in (None, 1) and not cell.get("at")
    unlocked = cell.get("engine", "in-process") == "in-process" or record["method"] == "backprop"
    return named and whole and unlocked and not config.get("hold_out")


def _settings(record: Record) -> list[Any]:
    cell, config = part(record, "cell"), part(record, "config")
    later = [config.get(k) or None for k in ("precision", "compiled", "augment")]
    return [cell.get("width"), record.get("steps"), record.get("batch_size"), config.get("lr"), *later]


def _cell_of(record: Record) -> list[Any]:
    return [part(record, "cell").get(k) for k in ("data", "arch", "layers")]


def _row_key(record: Record) -> str:
    return key([_cell_of(record), _settings(record)])


def _num_cells(rows: dict[str, _Row]) -> int:
    return len({key(_cell_of(_first(row))) for row in rows.values()})


def _first(row: _Row) -> Record:
    return next(iter(row.values()))[0]


def _column(record: Record) -> str:
    """Name of a column: the method, and how it averages where that is what is compared."""
    decay = number(rule_settings(record), "decay")
    return text(record.get("method"), 40) + (f" (decay {decay:g})" if decay else "")


def _place(row: _Row) -> tuple[Any, ...]:
    """Return what to sort rows by: data, architecture, depth, then steps."""
    record = _first(row)
    data, arch, layers = _cell_of(record)
    order = [names.index(v) if v in names else len(names) for names, v in ((_DATA, data), (_ARCHS, arch))]
    steps = number(record, "steps") or 0.0
    return (order[0], text(data), order[1], layers, steps, text(_settings(record)))


def _sheet(tier: str, rows: dict[str, _Row]) -> Sheet:
    ordered = sorted(rows.values(), key=_place)
    met = {column: records[0] for row in ordered for column, records in row.items()}
    columns = sorted(met, key=lambda column: position(met[column]))[:_MOST_COLUMNS]
    lines: list[tuple[str, ...]] = []
    failures: list[str] = []
    bad: list[bool] = []
    for row in ordered:
        record = _first(row)
        name = "{} {} {}".format(*(text(v, 20) for v in _cell_of(record)))
        figures = published.errors_pct(part(record, "cell"), any_width=True)
        cells = [_cell(row.get(column, []), figures.get(column)) for column in columns]
        lines.append((name, _settings_text(record), *cells))
        wrong = [line for c in columns for line in failures_of(f"{name}, {c}", last_of_each(row.get(c, [])))]
        failures += wrong
        bad.append(bool(wrong))
    notes = ["Mean ± half the distance between best and worst (runs)."]
    if any("[" in cell for line in lines for cell in line[2:]):
        notes[0] += " In brackets the published figure."
        notes += [published.schedule_note(), published.widths_note()]
    headings = ("data, network, layers", "settings", *columns)
    title = f"test error in % · {tier}"
    return Sheet(title, headings, tuple(lines), tuple(bad), tuple(failures), tuple(notes))


def _cell(records: list[Record], figure: float | None) -> str:
    """Return our error and the published one; apart for each set of rules, if there are several."""
    if not records:
        return DASH
    rules: dict[str, list[Record]] = {}
    for record in records:
        rules.setdefault(key(rule_settings(record)), []).append(record)
    ours = "; ".join(error_cell(last_of_each(group)) for group in list(rules.values())[:4])
    return ours + ("" if figure is None else f" [{figure:.1f}]")


def _settings_text(record: Record) -> str:
    width, steps, batch, lr, precision, compiled, augment = _settings(record)
    units = _UNITS.get(part(record, "cell").get("arch", ""), "units")
    count = f"{steps:,}" if isinstance(steps, int) and abs(steps) < 1e15 else text(steps, 12)
    words = [f"{text(width, 12)} {units}", f"{count} steps of {text(batch, 12)}", f"lr {text(lr, 12)}"]
    words += [text(precision, 12)] if precision else ["float32"]
    words += [word for word, given in (("compiled", compiled), ("augment", augment)) if given]
    return ", ".join(words)

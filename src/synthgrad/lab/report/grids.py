"""Tables that gather many runs: the grid of networks and methods, and the sweep over update probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd

from ..records import Record
from . import published
from .frame import first, groups, latest, num_bad, reasons, records_of, where
from .labels import is_bench, title_of
from .measures import ERROR
from .sheet import Column, Sheet, sheet_of
from .words import DASH, key, text

__all__ = ["EQUAL_STEPS", "EQUAL_UPDATES", "MANY", "Sweep", "grid_sheets", "sparse_sheet", "sparse_sweeps"]

_DATA = ("mnist-10k", "mnist", "cifar10")
_ARCHS = ("fcn", "cnn")
_UNITS = {"cnn": "filters"}
_MOST_GRIDS, _MOST_COLUMNS, _MOST_SWEEPS, _MOST_METHODS = 6, 24, 6, 8

EQUAL_UPDATES, EQUAL_STEPS, OTHER = "equal updates", "equal steps", "neither"
#: With more probabilities than this a row of the table is a tenth of them, and runs are drawn as dots.
MANY = 16
_SPARSE_NOTES = (
    "p: probability that a module updates in a step; backprop skips all its modules at once.",
    "At equal updates a run with p makes 1/p times the steps; at equal steps it makes p times the updates.",
    "Test error in %: mean ± half the distance between best and worst (runs).",
)


def grid_sheets(frame: pd.DataFrame, *, least: int = 2) -> list[Sheet]:
    """Return a grid of test errors as in the paper's Table 1, for each tier with enough networks or data sets.

    Runs stand in it that measured the test error after making every update, with a cut after every layer;
    each row names the settings that its runs share.

    Args:
        frame: of any records.
        least: how many cells of data, architecture and depth a tier must have to make a grid.
    """
    runs = where(frame, map(_belongs, records_of(frame)))
    runs = runs.assign(
        tier=[text(r.tier, 20) for r in records_of(runs)],
        network=[key(_network(r)) for r in records_of(runs)],
        row=[key([_network(r), _settings(r)]) for r in records_of(runs)],
        column=[_column(r) for r in records_of(runs)],
    )
    tiers = [tier for tier in groups(runs, "tier") if tier[1]["network"].nunique() >= least]
    return [_grid(tier, found) for tier, found in tiers[:_MOST_GRIDS]]


def _belongs(record: Record) -> bool:
    cell = record.cell
    if is_bench(record) or record.experiment == "sparse" or not record.method:
        return False
    named = cell.arch in _ARCHS and cell.number("layers") is not None
    unlocked = cell.engine in (None, "in-process") or record.method == "backprop"
    return named and unlocked and cell.update_prob in (None, 1) and not cell.at and not record.config.hold_out


def _network(record: Record) -> list[object]:
    return [record.cell.data, record.cell.arch, record.cell.layers]


def _settings(record: Record) -> list[object]:
    config = record.config
    later = [config.precision or None, config.compiled or None, config.augment or None]
    return [record.cell.width, record.steps, record.batch_size, config.get("lr"), *later]


def _column(record: Record) -> str:
    """Name of a column: the method, and how it averages where that is what is compared."""
    decay = record.config.rule.decay
    return text(record.method, 40) + (f" (decay {decay:g})" if decay else "")


def _settings_text(record: Record) -> str:
    width, steps, batch, lr, precision, compiled, augment = _settings(record)
    count = f"{steps:,}" if isinstance(steps, int) and abs(steps) < 1e15 else text(steps, 12)
    units = _UNITS.get(record.cell.arch or "", "units")
    words = [f"{text(width, 12)} {units}", f"{count} steps of {text(batch, 12)}", f"lr {text(lr, 12)}"]
    words += [text(precision, 12)] if precision else ["float32"]
    return ", ".join(words + [word for word, on in (("compiled", compiled), ("augment", augment)) if on])


def _place(runs: pd.DataFrame) -> tuple[object, ...]:
    """Return what to sort rows by: data, architecture, depth, then steps."""
    record = first(runs)
    cell = record.cell
    order = [
        names.index(v) if v in names else len(names) for names, v in ((_DATA, cell.data), (_ARCHS, cell.arch))
    ]
    steps = runs["steps"].fillna(0.0).iloc[0]
    return (order[0], text(cell.data), order[1], cell.number("layers"), steps, text(_settings(record)))


def _grid(tier: str, runs: pd.DataFrame) -> Sheet:
    rows = sorted((found for _, found in groups(runs, "row")), key=_place)
    ordered = pd.concat(rows).sort_values("place", kind="stable")
    columns = list(dict.fromkeys(ordered["column"]))[:_MOST_COLUMNS]
    marked = False

    def name(found: pd.DataFrame) -> str:
        return "{} {} {}".format(*(text(v, 20) for v in _network(first(found))))

    def cell_of(column: str) -> Callable[[pd.DataFrame], str]:
        def cell(found: pd.DataFrame) -> str:
            nonlocal marked
            own = found[found["column"] == column]
            if not len(own):
                return DASH
            # Apart for each set of rules, if there are several.
            rules = own.assign(rule=[key(r.config.rule) for r in records_of(own)])
            ours = "; ".join(ERROR.counted(latest(part, "seed")) for _, part in groups(rules, "rule")[:4])
            figure = published.errors_pct(first(own).cell, any_width=True).get(column)
            marked = marked or figure is not None
            return ours + ("" if figure is None else f" [{figure:.1f}]")

        return cell

    sheet = sheet_of(
        f"test error in % · {tier}",
        [
            Column("data, network, layers", name, key=True),
            Column("settings", lambda found: _settings_text(first(found)), key=True, late=True),
            *(Column(column, cell_of(column)) for column in columns),
        ],
        rows,
        is_bad=lambda found: num_bad(latest(found, "column", "seed")) > 0,
        failures=[
            f"{name(row)}, {column}: {reason}"
            for row in rows
            for column in columns
            for reason in reasons(latest(row[row["column"] == column], "seed"))
        ],
    )
    notes = ["Mean ± half the distance between best and worst (runs)."]
    if marked:
        notes[0] += " In brackets the published figure."
        notes += [published.schedule_note(), published.widths_note()]
    return replace(sheet, notes=tuple(notes))


@dataclass(frozen=True, slots=True)
class Sweep:
    """Runs that differ in method, update probability and steps only; of each run the last.

    Attributes:
        runs: with ``kinds``, what a run has in common with those of p = 1: updates, steps, or both.
        methods: in the order of all tables.
    """

    runs: pd.DataFrame
    methods: tuple[str, ...]

    @property
    def records(self) -> list[Record]:
        """The records."""
        return records_of(self.runs)


def sparse_sweeps(frame: pd.DataFrame) -> list[Sweep]:
    """Return the sweeps among the records, one for each setting that they share."""
    sweeps: list[Sweep] = []
    for _, found in groups(frame[frame["kind"] == "sparse"], "setting"):
        runs = latest(found, "method", "prob", "steps", "seed").copy()
        runs["steps"] = runs["steps"].fillna(0.0)
        whole = runs[runs["prob"] == 1]
        # Equal work is measured by the steps of p = 1, else by the most frequent ones.
        counts = (whole if len(whole) else runs)["steps"].value_counts()
        base = float(counts[counts == counts.max()].index.min())
        runs["kinds"] = [
            _kinds(prob, steps, base) for prob, steps in zip(runs["prob"], runs["steps"], strict=True)
        ]
        methods = dict.fromkeys(runs.sort_values("place", kind="stable")["method"])
        sweeps.append(Sweep(runs, tuple(methods)[:_MOST_METHODS]))
    return sweeps[:_MOST_SWEEPS]


def _kinds(prob: float, steps: float, base: float) -> tuple[str, ...]:
    updates = (EQUAL_UPDATES,) if abs(steps * prob - base) <= 1 else ()  # whole steps only
    return (*updates, *((EQUAL_STEPS,) if steps == base else ())) or (OTHER,)


def sparse_sheet(sweep: Sweep) -> Sheet:
    """Return a sweep as text: a row for each probability and kind of comparison, a column for each method."""
    runs, many = sweep.runs, sweep.runs["prob"].nunique() > MANY
    # With p = 1 both kinds are the same runs: they are listed once.
    once = [
        k if p != 1 else k[-1:] if many else k[:1] for k, p in zip(runs["kinds"], runs["prob"], strict=True)
    ]
    rows = runs.assign(kinds=once).explode("kinds")
    rows["tenth"] = (10 * rows["prob"]).astype(int).clip(upper=9) / 10 if many else rows["prob"]
    rows["order"] = rows["kinds"].map([EQUAL_UPDATES, EQUAL_STEPS, OTHER].index)
    rows["less"] = -rows["tenth"]
    found = [group for _, group in rows.groupby(["order", "less", "steps"])]

    def label(group: pd.DataFrame) -> str:
        prob = group["tenth"].iloc[0]
        return f"{prob:g}–{prob + 0.1:.1f}" if many else f"{prob:g}"

    def kind(group: pd.DataFrame) -> str:
        return group["kinds"].iloc[0] if group["tenth"].iloc[0] != 1 or many else "every update"

    def errors(method: str) -> Callable[[pd.DataFrame], str]:
        return lambda group: ERROR.counted(group[group["method"] == method])

    return sheet_of(
        title_of(sweep.records[0], without_steps=True),
        [
            Column("p", label, key=True),
            Column("compared at", kind, key=True),
            *(Column(method, errors(method)) for method in sweep.methods),
            Column("steps", lambda g: f"{g['steps'].iloc[0]:,.0f}"),
            Column("updates of a module", lambda g: f"about {(g['steps'] * g['prob']).mean():,.0f}"),
        ],
        found,
        is_bad=lambda group: num_bad(group) > 0,
        failures=[
            f"{method}, p={label(group)}, {group['steps'].iloc[0]:,.0f} steps: {reason}"
            for group in found
            for method in sweep.methods
            for reason in reasons(latest(group[group["method"] == method], "seed"))
        ],
        notes=_SPARSE_NOTES,
    )

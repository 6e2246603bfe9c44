"""Plots of language models: bits per character over lag, over tokens and over seconds, and those of their own modules.

One plot has room for so many lines. Where a table has more rows, they are divided: by optimizer, then by the number of
modules, and so on. Backpropagation with the same optimizer, which they are held against, stands in every part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from ..records import Record
from .agreement import agreement_groups, agreement_plots
from .corrections import correction_groups, correction_plots
from .curves import SECONDS, TOKENS, TRAINING_BITS, VALIDATION_BITS, Axis, curves, flat, means_of, points_of
from .facets import DELAY, MICROBATCHES, MODULES, OPTIMIZER, RATE, common_facets, row_names, short_label
from .frame import figures, first, good, groups, records_of, where
from .labels import lag_of
from .language_models import SYNCHRONOUS
from .measures import mean
from .plot import COLOURS, Group, Line, Plot, styled, thin
from .rates import VALIDATION, at_best_rates, searched
from .trainings import Table

__all__ = ["language_groups", "language_plots"]

_MOST_ROWS = len(COLOURS)  # of a plot
_MOST_LAGGING = _MOST_ROWS + 2  # over lags, where level lines and markers tell apart what has one colour
_LEVEL = ("backprop", "no_bprop", "local_loss")  # methods that no lag concerns
_NOT_OVER_LAG = (DELAY, RATE)  # what names over lags do not say
_LEVEL_DASHES, _MARKERS = (3, 1, 2), "os^Dv<>pXP"
_SEEDS = "Thin: every seed. Bold: their median, as far as all of them go."
_STEEP = "What is steep at the beginning may lie above the axes."
_LAGS = "Level lines: rows that no lag concerns. Bars reach from the best to the worst seed."
_AT_BEST = " Of several learning rates each point has the one with the fewest bits."
_BEST_ROWS = " Of several learning rates each row has the one with the fewest bits."
_COSINE = Axis("cosine", "cosine of the credit", "cosine with the true gradient")
_COSINE_NOTE = (
    "The credit that a module learns from, held against the true gradient: the mean over interfaces."
)
#: Of a short training more than a tenth is steep.
_BITS = tuple(replace(axis, steep=0.25) for axis in (VALIDATION_BITS, TRAINING_BITS))


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows for one plot.

    Attributes:
        words: what tells them from those of other plots; empty for all rows of a table.
        runs: with the names of the rows as ``label``.
        more: how many rows there is no room for.
    """

    words: str
    runs: pd.DataFrame
    more: int = 0

    def title(self, about: str) -> str:
        """Return the title of a plot."""
        return f"{about}: {self.words}" if self.words else about


def language_groups(table: Table) -> list[Group]:
    """Return the plots of a table of language models."""
    lags, parts = language_plots(table, "lag"), _parts(_drawn(table))
    note = _LAGS + (_AT_BEST if searched(table.runs) else "")
    found = [Group("Bits per character over lag", lags, note)] if lags else []
    for place, heights in ((TOKENS, _BITS), (SECONDS, _BITS[:1])):
        if place is SECONDS and not table.timed:
            continue
        plots = [
            p for rank, height in enumerate(heights) for p in _curves(parts, place, height, 2 * rank + 1)
        ]
        note = f"{_SEEDS} {_STEEP}" if table.runs["seed"].nunique() > 1 else _STEEP
        note += _BEST_ROWS if _at_best(table) else ""
        more = sum(part.more for part in parts)
        note += f" {more} rows with more bits per character are not drawn." if more else ""
        found += [Group(place.title, plots, note)] if plots else []
    agreement = list(_curves(parts, TOKENS, _COSINE, 4))
    found += [Group("Quality of the credit", agreement, _COSINE_NOTE)] if agreement else []
    return [*found, *agreement_groups(table), *correction_groups(table)]


def language_plots(table: Table, over: str = "data", of: str = "") -> list[Plot]:
    """Return the plots of one kind.

    Args:
        table: of language models.
        over: ``data``, ``seconds``, ``lag``, ``cosine`` of the credit, or ``weight`` of late corrections.
        of: what the curves of tokens or seconds show, as their points name it; empty for validation bits per character.
    """
    if over == "cosine":
        return agreement_plots(table)
    if over == "weight":
        return correction_plots(table)
    if over == "lag":
        return [plot for part in _parts(_lagging(table), lags=True) if (plot := _lag_plot(part))]
    place = {"data": TOKENS, "seconds": SECONDS}.get(over)
    heights = [height for height in (*_BITS, _COSINE) if height.name == (of or VALIDATION_BITS.name)]
    return [p for height in heights if place for p in _curves(_parts(_drawn(table)), place, height)]


def _at_best(table: Table) -> bool:
    """Are there more rows than a plot has room for, of which some differ in their learning rates alone?"""
    return table.runs["label"].nunique() > _MOST_ROWS and bool(searched(table.runs))


def _drawn(table: Table) -> pd.DataFrame:
    """Return the runs that have curves, row by row; of many rows those at the best of their learning rates."""
    runs = pd.concat(table.rows())
    runs = at_best_rates(runs) if _at_best(table) else runs
    return where(runs, (len(record.curve) > 0 for record in records_of(runs)))


# Which rows share a plot


def _parts(runs: pd.DataFrame, *, lags: bool = False) -> list[_Part]:
    """Return the rows of a table in parts that a plot has room for.

    Args:
        runs: row by row.
        lags: is a row a line over lags?
    """
    if not len(runs):
        return []
    records = records_of(runs)
    waiting = runs["method"] == SYNCHRONOUS
    known = list(dict.fromkeys(OPTIMIZER.value(r) for r in records_of(runs[waiting])))
    runs = runs.assign(
        # What has no synchronous run of its own is held against the first.
        optimizer=[v if (v := OPTIMIZER.value(r)) in known or not known else known[0] for r in records],
        modules=[MODULES.words(v) if (v := MODULES.value(r)) else "other cuts" for r in records],
        credit=["late gradients" if r.method == "delayed" else "credit at once" for r in records],
        microbatches=[MICROBATCHES.words(MICROBATCHES.value(r) or "no") for r in records],
    )
    if lags:
        runs = runs.assign(label=[_over_lag(r) for r in records])
    # Over lags late gradients and what corrects by them belong together.
    names = ("optimizer", "modules", *(("microbatches", "credit") if lags else ("credit", "microbatches")))
    most = _MOST_LAGGING if lags else _MOST_ROWS
    if runs["label"].nunique() <= most:
        return [_named("", runs, lags=lags)]
    parts = [part for part in _divided(runs[~waiting], runs[waiting], names, most) if len(part[1])]
    drawn = {label for _, own in parts for label in own["label"]}
    alone = runs[waiting & ~runs["label"].isin(drawn)]  # beside nothing that waits less
    parts += [("the rest", alone)] if len(alone) else []
    return [_named(words, own, lags=lags) for words, own in parts]


def _divided(
    runs: pd.DataFrame, references: pd.DataFrame, names: Sequence[str], most: int, said: tuple[str, ...] = ()
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield parts of some rows with the words for them, each with the synchronous runs that belong to it."""
    own = references[references["optimizer"].isin(runs["optimizer"])]
    alike = own[own["microbatches"].isin(runs["microbatches"])]
    both = pd.concat([alike if len(alike) else own, runs])
    if both["label"].nunique() <= most or not names:
        yield ", ".join(said), both
        return
    values = groups(runs, names[0])
    for value, part in values:
        words = (*said, str(value)) if len(values) > 1 else said
        yield from _divided(part, references, names[1:], most, words)


def _named(words: str, runs: pd.DataFrame, *, lags: bool) -> _Part:
    """Return a part with its best rows, and the names that tell them apart."""
    bits = {label: mean(VALIDATION.values(own)) for label, own in groups(runs, "label")}
    references = set(runs.loc[runs["method"] == SYNCHRONOUS, "label"])
    found = {label: (label not in references, float("inf") if b is None else b) for label, b in bits.items()}
    kept = sorted(found, key=found.__getitem__)
    most = _MOST_LAGGING if lags else _MOST_ROWS
    runs = runs[runs["label"].isin(kept[:most])]
    but = _NOT_OVER_LAG if lags else ()
    rows = {label: first(own) for label, own in groups(runs, "label")}
    records = list(rows.values())
    named = dict(zip(rows, row_names(records, common_facets(records, but=but), but=but), strict=True))
    return _Part(words, runs.assign(label=runs["label"].map(named)), max(0, len(kept) - most))


# Plots of a part


def _curves(parts: Sequence[_Part], place: Axis, height: Axis, rank: int = 0) -> Iterator[Plot]:
    for part in parts:
        points = points_of(part.runs)
        points["cosine"] = [_cosine(quality) for quality in points["quality"]]
        named = [label for label, _ in groups(part.runs, "label")]
        if plot := curves(points, place, height, TOKENS, rank, named):
            low = min(p[1] for line in plot.lines for p in line.points)
            plot = replace(plot, y_range=(min(0.0, low) - 0.05, 1.05)) if height is _COSINE else plot
            yield replace(plot, title=part.title(plot.title))


def _cosine(quality: dict[str, dict[str, float | None]]) -> float | None:
    """Return the mean cosine of the interfaces that were measured at a point."""
    return mean([c for measured in quality.values() if (c := measured.get("cosine")) is not None])


def _over_lag(record: Record) -> str:
    """Return the name of a line over lags, whose points may have different learning rates."""
    return short_label(record, {}, but=_NOT_OVER_LAG)


def _lagging(table: Table) -> pd.DataFrame:
    """Return the runs to draw over lags: the rows that have any, and those that no lag concerns."""
    runs = at_best_rates(pd.concat(table.rows()))
    runs = runs.assign(lag=[0.0 if r.method in _LEVEL else lag_of(r) for r in records_of(runs)])
    names = {_over_lag(r) for r in records_of(runs[runs["lag"] > 0])}
    return where(runs, (r.method in _LEVEL or _over_lag(r) in names for r in records_of(runs)))


def _lag_plot(part: _Part) -> Plot | None:
    """Return the plot of a part over lags; None if its rows have one lag only."""
    runs = part.runs
    ticks = sorted({0.0, *runs["lag"]})
    if len(ticks) < 3:
        return None
    lines: list[Line] = []
    styles = styled([label for label, _ in groups(runs, "label")])
    levels = [label for label, own in groups(runs, "label") if own["method"].iloc[0] in _LEVEL]
    for k, (label, own) in enumerate(groups(runs, "label")):
        colour = styles[label][0]
        if label in levels:
            middle = mean(figures(good(own), f"metrics.{VALIDATION.metric}"))
            points = () if middle is None else flat((lag, middle) for lag in (0.0, ticks[-1]))
            dash = _LEVEL_DASHES[levels.index(label) % len(_LEVEL_DASHES)]
            width = 2.2 if own["method"].iloc[0] == SYNCHRONOUS else 1.6
            lines += [Line(label, points, colour, dash, width=width)] if points else []
        elif points := means_of(own, VALIDATION, "lag"):
            lines.append(Line(label, points, colour, marker=_MARKERS[k % len(_MARKERS)]))
    if not lines:
        return None
    title = part.title("bits per character over lag")
    labels = ("lag at each interface (updates)", VALIDATION.heading)
    about = f"{title}: {', '.join(line.name for line in lines)}"
    return Plot(title, *labels, tuple(lines), about, ticks=tuple(thin(ticks, 10)))

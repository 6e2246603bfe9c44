"""Every plot of a report: a description of what it shows, and the one function that draws it as SVG text.

The SVG stands inside a page, readable in light and dark, with text as text, or alone as a file of a document.
"""

from __future__ import annotations

from . import backend as backend  # before all that imports matplotlib

# isort: split

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any, TypeVar

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from .labels import place_of
from .words import shorten

__all__ = ["COLOURS", "DASHES", "Group", "Line", "Plot", "draw", "standalone", "styled", "thin"]

#: Colours as they are drawn, told apart by colour-blind readers too (after Okabe and Ito). The page puts
#: variables in their place, with shades for light and for dark.
COLOURS = ("#0072b2", "#d08700", "#b8321a", "#00805a", "#b4578c", "#2e9fd4", "#7f7f7f", "#000000")
DASHES = ("-", "--", "-.", ":")
_NEUTRAL = "#808791"  # of what has no colour of its own, in a file that does not know its page
_WIDTH, _HEIGHT = 5.2, 3.2  # of a figure, without its legend, in inches of 72 units
_CHARACTER = 0.072  # width of a legend's character, about, in inches

T = TypeVar("T")

#: Place, height, and how far a bar reaches below and above.
Point = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a plot, or points that are not joined.

    Attributes:
        name: in the legend; empty for none.
        points: place, height, and how far a bar reaches below and above; no point at all for the legend alone.
        colour: index into `COLOURS`.
        dash: index into `DASHES`; None for points that are not joined.
        marker: of the points; empty for none.
        hollow: are the markers not filled?
        width: of the line.
        faint: is it one of several runs, behind what they have in common?
        stairs: does a height last until the next point?
        ended: did the run end before its time? A cross stands at its end.
        tag: stands beside its last point; empty for nothing.
    """

    name: str
    points: tuple[Point, ...]
    colour: int
    dash: int | None = 0
    marker: str = ""
    hollow: bool = False
    width: float = 1.6
    faint: bool = False
    stairs: bool = False
    ended: bool = False
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """What a plot shows.

    Attributes:
        title: stands over it.
        x_label: under the axis, with the unit.
        y_label: beside the axis, with the unit.
        lines: from back to front.
        about: for readers that cannot see it; empty for one made of title and lines.
        rank: where not all plots of a table have room, those of lower rank stay.
        log_y: are heights logarithmic? None: where they are positive and differ by more than a factor of 12.
        floor: where heights of zero are drawn; None if there is no such place.
        y_range: of what is shown; None for all.
        x_range: the same of places, where there are no ticks.
        log_x: are places logarithmic? They must be positive.
        ticks: places that are named under the axis, at equal distances for equal factors where these are large;
            empty for round numbers from zero.
        guide: ``one`` for a dotted line at 1, ``diagonal`` for one where both axes are equal: from zero, or both
            logarithmic if heights are.
        rows: stand the lines one above the other, each named at its side, over heights as places?
    """

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    about: str = ""
    rank: int = 0
    log_y: bool | None = False
    floor: float | None = None
    y_range: tuple[float | None, float | None] = (None, None)
    x_range: tuple[float | None, float | None] = (0.0, None)
    log_x: bool = False
    ticks: tuple[float, ...] = ()
    guide: str = ""
    rows: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Plots under one heading, and what a reader must know of them."""

    heading: str
    plots: list[Plot] = field(default_factory=list[Plot])
    note: str = ""


def styled(names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return colour and dashes of each row: a method's own, the same in every plot, where it has one row only."""
    places = [place_of(name.partition(" ")[0]) for name in names]
    own = len(set(places)) == len(places) and None not in places
    numbers = [place if own and place is not None else k for k, place in enumerate(places)]
    return {
        name: (n % len(COLOURS), (n + n // len(COLOURS)) % len(DASHES))
        for name, n in zip(names, numbers, strict=True)
    }


def thin(points: Sequence[T], most: int = 300) -> list[T]:
    """Return at most ``most`` of the points, evenly spread, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(k * (len(points) - 1) / (most - 1))] for k in range(most)]


def draw(plot: Plot, salt: str = "plot") -> str:
    """Return a plot as SVG without a fixed size.

    Args:
        plot: what it shows.
        salt: of the names inside the SVG: another one for every plot of a page, or they would clash.
    """
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 10}
    settings |= {"text.parse_math": False, "axes.formatter.useoffset": False}
    height = 0.9 + 0.3 * len(plot.lines) if plot.rows else _HEIGHT
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a font without some character, a point that a scale cannot show
        figure = Figure(figsize=(_WIDTH, height))
        axes = figure.subplots()
        axes.grid(True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if plot.rows:
            _draw_rows(axes, plot)
        else:
            for line in plot.lines:
                _draw_line(axes, line, plot.floor)
            _finish(axes, plot)
        whole = height + 0.21 * (0 if plot.rows else _legend(figure, plot.lines))
        figure.set_size_inches(_WIDTH, whole)
        sides = {"left": 0.72 / _WIDTH, "right": 1 - 0.12 / _WIDTH}
        figure.subplots_adjust(**sides, bottom=0.55 / whole, top=(height - 0.1) / whole)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    names = ", ".join(line.name for line in plot.lines if line.name)
    return _inline(buffer.getvalue(), plot.title, plot.about or f"{plot.title} over {plot.x_label}: {names}")


def _style(line: Line) -> dict[str, Any]:
    """Return the style of a line. Black markers stay open: matplotlib writes no black fill for a page to shade."""
    colour = COLOURS[line.colour]
    return {
        "color": colour,
        "linestyle": "none" if line.dash is None else DASHES[line.dash],
        "linewidth": 0.8 if line.faint else line.width,
        "alpha": 0.5 if line.faint else None,
        "marker": line.marker or None,
        "markersize": 9 if line.marker == "*" else 4.5,  # a star has little room inside
        "markerfacecolor": "none" if line.hollow or line.colour == len(COLOURS) - 1 else colour,
    }


def _draw_line(axes: Axes, line: Line, floor: float | None) -> None:
    if not line.points:
        return
    shown = thin(line.points, 150 if line.faint else 300)
    places = [p[0] for p in shown]
    heights = [p[1] if floor is None else max(p[1], floor) for p in shown]
    style: Any = _style(line) | ({"drawstyle": "steps-post"} if line.stairs else {})
    if any(p[2] or p[3] for p in shown):
        bars = ([p[2] for p in shown], [p[3] for p in shown])
        axes.errorbar(places, heights, yerr=bars, capsize=2.5, elinewidth=1, **style)
    else:
        axes.plot(places, heights, **style)
    if line.tag:
        _draw_tag(axes, line)
    if line.ended:
        cross: Any = {"marker": "x", "markersize": 9, "markeredgewidth": 2.2, "zorder": 5}
        axes.plot(places[-1:], heights[-1:], color=COLOURS[line.colour], **cross)


def _draw_tag(axes: Axes, line: Line) -> None:
    place, height, *_ = line.points[-1]
    axes.annotate(line.tag, (place, height), (4, 3), textcoords="offset points", fontsize=8)


def _draw_rows(axes: Axes, plot: Plot) -> None:
    at: Any = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "bottom"}
    for k, line in enumerate(plot.lines):
        style: Any = _style(line) | {"markersize": 6, "linestyle": "none"}
        for _, value, down, up in line.points:
            axes.errorbar([value], [k], xerr=([down], [up]) if down or up else None, capsize=3, **style)
        # What a column has no room for is said above the mark.
        axes.annotate(line.name, (0, k), (6, 4), fontsize=9, **at)
    axes.set_ylim(len(plot.lines) - 0.4, -0.9)
    axes.set_yticks([])
    axes.set_xlim(left=0)
    axes.set_xlabel(plot.y_label)
    if plot.guide:
        axes.axvline(1, color=COLOURS[6], linewidth=1, linestyle=":")


def _finish(axes: Axes, plot: Plot) -> None:
    """Set the axes' ends, scales, numbers and guides."""
    heights = [p[1] for line in plot.lines for p in line.points]
    wide = bool(heights) and min(heights) > 0 and max(heights) > 12 * min(heights)
    if plot.ticks:
        if max(plot.ticks) >= 4 * max(1.0, min(plot.ticks)):
            # Ticks that begin at zero stand at equal distances from one on.
            axes.set_xscale("log", base=2) if min(plot.ticks) > 0 else axes.set_xscale(
                "symlog", base=2, linthresh=1
            )
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(plot.ticks, [f"{tick:g}" for tick in plot.ticks])
    elif plot.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(*plot.x_range)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
    low, high = plot.y_range
    if low is not None or high is not None:
        axes.set_ylim(low, high)
    if (plot.log_y or (plot.log_y is None and wide)) and (
        plot.floor is not None or axes.get_ylim()[0] > 0 or wide
    ):
        _log_scale(axes)
        if plot.floor is not None and min(heights) <= 0:
            axes.set_ylim(bottom=plot.floor)
    elif plot.log_y is None:
        axes.set_ylim(bottom=0)
    axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
    if plot.guide == "one":
        axes.axhline(1, color=COLOURS[6], linewidth=1, linestyle=":")
    elif plot.guide and plot.log_y:
        found = [value for line in plot.lines for p in line.points for value in p[:2]]
        ends = [min(found) / 1.25, 1.25 * max(found)]
        axes.plot(ends, ends, color=COLOURS[6], linewidth=1, linestyle=":")
        axes.set(xscale="log", xlim=ends, ylim=ends)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=8))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif plot.guide:
        ends = [1.08 * max(p[k] for line in plot.lines for p in line.points) for k in (0, 1)]
        axes.plot([0, ends[0]], [0, ends[0]], color=COLOURS[6], linewidth=1, linestyle=":")
        axes.set(xlim=(0, ends[0]), ylim=(0, ends[1]))


def _log_scale(axes: Axes) -> None:
    """Make the heights logarithmic with plain numbers: 2, 3, 5, 10, not 10 to some power."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high / low < 150 else (1,), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if high / low < 2.5:  # no round number may be in sight: ordinary steps serve better
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_minor_locator(NullLocator())


def _legend(figure: Figure, lines: Sequence[Line]) -> int:
    """Put the legend above the axes, where no curve can run through it; return its number of lines."""
    named = {line.name: line for line in lines if line.name}
    if not named:
        return 0
    handles: list[Artist] = [Line2D([], [], **_style(replace(line, faint=False))) for line in named.values()]
    labels = [shorten(name, 58) for name in named]
    # A sample of the line and the space between columns take as much as seven characters.
    columns = max(1, min(4, len(labels), int(_WIDTH / (_CHARACTER * (max(map(len, labels)) + 7)))))
    place: Any = {"loc": "upper left", "frameon": False, "fontsize": 9, "borderaxespad": 0.1}
    figure.legend(handles, labels, ncols=columns, **place)
    return -(-len(labels) // columns)


def _inline(svg: str, title: str, about: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # of one name in every plot
    # The page's shades in place of colours, so that a plot can be read in the dark as well.
    for k, colour in enumerate(COLOURS[:-1]):
        svg = svg.replace(f": {colour}", f": var(--c{k})")
    svg = re.sub(r"(fill|stroke): #000000", r"\1: currentColor", svg)
    head, rest = svg.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(about)}"><title>{escape(title)}</title>{rest}'


def standalone(svg: str) -> str:
    """Return a plot as a file of its own, in shades that can be read on light and on dark pages."""
    for k, colour in enumerate(COLOURS[:-1]):
        svg = svg.replace(f"var(--c{k})", colour)
    svg = svg.replace("currentColor", _NEUTRAL)
    width, height = (float(n) for n in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    size = f'<svg width="{1.6 * width:.0f}" height="{1.6 * height:.0f}"'
    head, rest = svg.replace("<svg", size, 1).split(">", 1)
    return f"{head}><style>text {{ fill: {_NEUTRAL} }}</style>{rest}".rstrip() + "\n"

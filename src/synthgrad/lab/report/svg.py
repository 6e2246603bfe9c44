"""Plots as SVG text to stand inside a page: readable in light and dark, with text as text."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from .fields import shorten

__all__ = [
    "COLOURS",
    "DASHES",
    "Legend",
    "bars",
    "depth_axis",
    "draw",
    "line_style",
    "log_scale",
    "plain_axis",
    "standalone",
    "thin",
]

#: Colours as they are drawn, told apart by colour-blind readers too (after Okabe and Ito). The page puts
#: variables in their place, with shades for light and for dark: see `COLOURS` in the page's style.
COLOURS = ("#0072b2", "#d08700", "#b8321a", "#00805a", "#b4578c", "#2e9fd4", "#7f7f7f", "#000000")
DASHES = ("-", "--", "-.", ":")

#: Handles and labels of a legend; None: what the axes have.
Legend = tuple[Sequence[Artist], Sequence[str]] | None

_NEUTRAL = "#808791"  # of what has no colour of its own, in a file that does not know its page

_WIDTH, _HEIGHT = 5.2, 3.2  # of a figure, without its legend, in inches of 72 units
_CHARACTER = 0.072  # width of a legend's character, about, in inches


def line_style(k: int) -> dict[str, Any]:
    """Return colour and dashes number ``k``: 32 that differ."""
    style = DASHES[(k + k // len(COLOURS)) % len(DASHES)]
    return {"color": COLOURS[k % len(COLOURS)], "linestyle": style}


def bars(axes: Axes, points: Sequence[tuple[float, float, float, float]], **style: Any) -> None:
    """Draw points with bars: of each its place, its height, and how far it may lie below and above.

    Args:
        axes: to draw on.
        points: none leaves an entry of the legend without a line.
        style: of the line, over what all have.
    """
    places, heights, down, up = zip(*points, strict=True) if points else ((), (), (), ())
    usual: dict[str, Any] = {"marker": "o", "markersize": 4.5, "linewidth": 1.6, "capsize": 2.5}
    if style.get("color") == COLOURS[-1]:
        usual["markerfacecolor"] = "none"  # matplotlib writes no black fill, so a page could give it no shade
    axes.errorbar(places, heights, yerr=(down, up), **(usual | style))


def thin(points: Sequence[tuple[float, float]], most: int = 300) -> list[tuple[float, float]]:
    """Return at most ``most`` of the points, evenly spread, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(k * (len(points) - 1) / (most - 1))] for k in range(most)]


def draw(paint: Callable[[Axes], Legend], salt: str, about: str, height: float = _HEIGHT) -> str:
    """Draw on a pair of axes and return them as SVG without a fixed size.

    Args:
        paint: draws, and returns the legend.
        salt: of the names inside the SVG: another one for every plot of a page, or they would clash.
        about: what the plot shows, for readers that cannot see it.
        height: of the figure without its legend, in inches.
    """
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.size": 10,
        "text.parse_math": False,
        "axes.formatter.useoffset": False,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a font without some character, a point that a scale cannot show
        figure = Figure(figsize=(_WIDTH, height))
        axes = figure.subplots()
        axes.grid(True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        handles, labels = paint(axes) or axes.get_legend_handles_labels()
        rows = _legend(figure, handles, labels)
        whole = height + 0.21 * rows
        figure.set_size_inches(_WIDTH, whole)
        figure.subplots_adjust(
            left=0.72 / _WIDTH, right=1 - 0.12 / _WIDTH, bottom=0.55 / whole, top=(height - 0.1) / whole
        )
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), about)


def _legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> int:
    """Put the legend above the axes, where no curve can run through it; return its number of lines."""
    if not labels:
        return 0
    labels = [shorten(label, 58) for label in labels]
    # A sample of the line and the space between columns take as much as seven characters.
    columns = max(1, min(4, len(labels), int(_WIDTH / (_CHARACTER * (max(map(len, labels)) + 7)))))
    figure.legend(
        handles, labels, loc="upper left", ncols=columns, frameon=False, fontsize=9, borderaxespad=0.1
    )
    return -(-len(labels) // columns)


def _inline(svg: str, about: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # of one name in every plot
    # The page's shades in place of colours, so that a plot can be read in the dark as well.
    for k, colour in enumerate(COLOURS[:-1]):
        svg = svg.replace(f": {colour}", f": var(--c{k})")
    svg = re.sub(r"(fill|stroke): #000000", r"\1: currentColor", svg)
    head, rest = svg.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{escape(about)}">{rest}'


def standalone(svg: str) -> str:
    """Return a plot of `draw` as a file of its own, in shades that can be read on light and on dark pages."""
    for k, colour in enumerate(COLOURS[:-1]):
        svg = svg.replace(f"var(--c{k})", colour)
    svg = svg.replace("currentColor", _NEUTRAL)
    width, height = (float(n) for n in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    size = f'<svg width="{1.6 * width:.0f}" height="{1.6 * height:.0f}"'
    head, rest = svg.replace("<svg", size, 1).split(">", 1)
    return f"{head}><style>text {{ fill: {_NEUTRAL} }}</style>{rest}".rstrip() + "\n"


def log_scale(axes: Axes) -> None:
    """Make the heights logarithmic with plain numbers: 2, 3, 5, 10, not 10 to some power."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    narrow = high / low < 150
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if narrow else (1,), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if high / low < 2.5:  # no round number may be in sight: ordinary steps serve better
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_minor_locator(NullLocator())


def plain_axis(axes: Axes) -> None:
    """Number the steps as 2,000 and not as 2e3."""
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))


def depth_axis(axes: Axes, depths: Sequence[float], label: str = "layers") -> None:
    """Put the depths that were measured under the axes, at equal distances for equal factors."""
    if min(depths) > 0 and max(depths) >= 4 * min(depths):
        axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(depths, [f"{depth:g}" for depth in depths])
    axes.set_xlabel(label)

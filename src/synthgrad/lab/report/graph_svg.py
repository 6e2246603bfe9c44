"""The picture of a decoupled graph, as SVG: what goes up, what comes back at once, what only trains a rule.

Over every module, from bottom to top:

    h ──┐ to the modules above        δ, the true message from above
        │ ─ ─ ─ ─ ─ the cut ─ ─ ─ ─ ─ ┆ ─
        │                             ▼
        ├────────────────────────► [ rule ]
        │                             │ δ̂, the credit
    [ module ] ◄──────────────────────┘
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from textwrap import wrap

from .fields import shorten
from .graph import Graph, Interface, Module, shortened
from .graph_layout import Place, layout

__all__ = ["graph_svg"]

_MODULE_W, _MODULE_H = 140, 48
_RULE_W, _RULE_H = 166, 62
_GAP = 26  # between a module and its rules, and between places
_LINE_W = 20  # room of a line that passes by
_MARGIN = 8
_LINE = 13  # of text
# Heights over a module: its rules, the turn of the true message, the cut, the start of free curves.
_RULE_BOTTOM, _TURN, _CUT, _FREE = 2, 78, 88, 92
_CHAIN_GAP, _OTHER_GAP = 112, 160  # between ranks: with straight lines, and with room for curves
_WIDE = 420  # pixels that a column of the page has
_ENDS = 34  # over the last module and under the first: for the loss and the data

_NOTES = {
    "in-process": "Each module updates as soon as its own part is done.",
    "layer-parallel": "All modules update in one batched step, each on a batch of its own.",
    "plain": "One training loop: all modules update in lock step.",
    "backprop": "Locked: each part waits for the gradient from above.",
}


def graph_svg(graph: Graph) -> tuple[str, bool]:
    """Return the picture of a graph, and whether it is a wide one; an empty text if the graph is too large."""
    small = shortened(graph)
    if small is None:
        return "", False
    picture = _Picture(small)
    return picture.svg(), picture.width > _WIDE


class _Picture:
    """Draws one graph; coordinates are pixels, the origin is the upper left corner."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.locked = graph.engine == "backprop"
        self.parts: list[str] = []
        widths = {m.name: self._width(m) for m in graph.modules}
        self.places = places = layout(graph, widths, _LINE_W, _GAP)
        straight = all(p.module is not None for p in self.places.values()) and all(
            len(p.below) < 2 for p in self.places.values()
        )
        self.gap = 44 if self.locked else _CHAIN_GAP if straight else _OTHER_GAP
        self.ranks = 1 + max(p.rank for p in self.places.values())
        self.width = max(p.x + p.width for p in self.places.values()) + 2 * _MARGIN
        self.width = max(self.width, 348)
        side = (self.width - max(p.x + p.width for p in self.places.values())) / 2
        for place in self.places.values():
            place.x += side
        highest = [m for m in graph.modules if places[m.name].rank == self.ranks - 1]
        # No network has an interface that feeds nothing, but a record may.
        over = any(e in graph.interfaces for m in highest for e in m.ends)
        self.top = _MARGIN + (_FREE if over else _ENDS)
        self.bottom = self.top + self.ranks * _MODULE_H + (self.ranks - 1) * self.gap
        #: Places of what carries an interface through a rank: the module that ends in it, or its line.
        self.producer = {e: m.name for m in graph.modules for e in m.ends}

    def _width(self, module: Module) -> float:
        if self.locked:
            return _MODULE_W
        rules = max(1, sum(e in self.graph.interfaces for e in module.ends))
        return _MODULE_W + rules * (_GAP + _RULE_W)

    def svg(self) -> str:
        """Return the whole picture."""
        for name, place in self.places.items():
            self._inputs(place)
            if place.module is None:
                self._passing(place)
            else:
                self._module(name, place, place.module)
        if self.locked:
            self._lock()
        height = self._legend(self.bottom + _ENDS + 14)
        about = f"Graph of {len(self.graph.modules)} modules, engine {self.graph.engine}"
        return (
            f'<svg class="graph" viewBox="0 0 {self.width:g} {height:g}" style="max-width:{self.width:g}px;'
            f'min-width:{min(self.width, 0.72 * self.width + 80):g}px" role="img" aria-label="{escape(about)}">'
            + "".join(self.parts)
            + "</svg>"
        )

    # Places

    def _y(self, rank: int) -> float:
        """Upper edge of the modules of a rank."""
        return self.top + (self.ranks - 1 - rank) * (_MODULE_H + self.gap)

    def _port(self, name: str, interface: str) -> float:
        """Where an interface's activation leaves a place."""
        place = self.places[name]
        if place.module is None:
            return place.x + place.width / 2
        ends = place.module.ends
        return place.x + _MODULE_W * (1 + ends.index(interface)) / (1 + len(ends))

    # Boxes

    def _module(self, name: str, place: Place, module: Module) -> None:
        y = self._y(place.rank)
        dashed = " more" if module.num_hidden else ""
        self.parts.append(_box(place.x, y, _MODULE_W, _MODULE_H, f"module{dashed}", module.name))
        lines = _module_lines(module)
        first = y + (_MODULE_H - _LINE * len(lines)) / 2 + 10
        for k, line in enumerate(lines):
            self._text(place.x + _MODULE_W / 2, first + k * _LINE, line, "strong" if k == 0 else "")
        if not module.inputs:
            self._arrow([(place.x + 70, y + _MODULE_H + 24), (place.x + 70, y + _MODULE_H)], "up")
            self._text(place.x + 82, y + _MODULE_H + 22, "data x", "left")
        fed = {i for m in self.graph.modules for i in m.inputs}
        for k, end in enumerate(e for e in module.ends if e in self.graph.interfaces):
            self._interface(place, module, k, end, self.graph.interfaces[end])
        if not fed.intersection(module.ends):
            self._loss(place, y)

    def _loss(self, place: Place, y: float) -> None:
        x = place.x + _MODULE_W / 2
        self._text(x, y - 26, "loss", "strong")
        self._arrow([(x - 5, y), (x - 5, y - 21)], "up")
        self._arrow([(x + 5, y - 21), (x + 5, y)], "credit")
        self._text(x + 11, y - 13, "δ", "left credit")

    def _interface(self, place: Place, module: Module, k: int, end: str, interface: Interface) -> None:
        y, port = self._y(place.rank), self._port(module.name, end)
        x = place.x + _MODULE_W + _GAP + k * (_GAP + _RULE_W)
        middle = x + _RULE_W / 2
        top = y - _RULE_BOTTOM - _RULE_H
        dull = "" if interface.gives else " dull"
        self.parts.append(_box(x, top, _RULE_W, _RULE_H, f"rule{dull}", f"{end}: {interface.rule}"))
        lines = _rule_lines(interface)
        first = top + (_RULE_H - _LINE * len(lines)) / 2 + 10
        for n, line in enumerate(lines):
            self._text(middle, first + n * _LINE, line, "strong" if n == 0 else "")
        if k == 0:
            self.parts.append(
                f'<line class="cut" x1="{place.x:g}" x2="{place.x + place.width:g}" y1="{y - _CUT:g}" y2="{y - _CUT:g}"/>'
            )
        # The rule sees the activation.
        look = y - 20 - 8 * k
        if interface.gives:
            self._arrow([(port, look), (x, look)], "look")
            # Rules further to the right come in lower, so that no line crosses another.
            into = y + 14 + 12 * k
            self._arrow([(middle, y - _RULE_BOTTOM), (middle, into), (place.x + _MODULE_W, into)], "credit")
            self._text(middle + 7, into + 2, "δ̂ credit", "left credit")
        else:
            self._text(middle, y + 17, "no credit", "")
        if interface.takes:
            turn = y - _TURN - 4 * k
            self._arrow([(port + 9, turn), (middle, turn), (middle, top)], "message")
        # Between the lines of several ends there is no room for shapes.
        shape = "×".join(map(str, interface.shape)) if len(module.ends) == 1 else ""
        self._text(port - 6, y - 34, shorten(f"h {shape}", 11), "right")

    # Lines

    def _inputs(self, place: Place) -> None:
        """Draw what comes to a place from the rank below, and what goes back to it."""
        y = self._y(place.rank) + _MODULE_H
        names = place.module.inputs if place.module else (place.carries,)
        # From left to right as they come, so that they do not cross at the end.
        feeds = sorted((self._port(b, n), n, b) for n, b in zip(names, place.below, strict=True))
        for k, (start, interface, below) in enumerate(feeds):
            low = self._y(self.places[below].rank)
            width = _MODULE_W if place.module else place.width
            x = place.x + width * (1 + k) / (1 + len(names))
            if self.locked:
                self._arrow([(start - 6, low), (x - 6, y)], "up")
                self._arrow([(x + 6, y), (start + 6, low)], "credit")
                self._text(x - 13, y + 27, "h", "right")
                self._text(x + 14, y + 27, "δ", "left credit")
                continue
            free = low - _FREE
            self._curve((start, low), (start, free), (x, y), "up", head=place.module is not None)
            rule = self.graph.interfaces.get(interface)
            if rule is not None and rule.takes:
                # Down to where the rule's own line takes over, beside what goes up.
                foot = low if self.places[below].module is None else low - _TURN
                self._curve((start + 9, foot), (start + 9, free), (x + 9, y), "message", head=False)
                if place.module is not None:
                    self._text(x + 15, y + 13, "δ", "left message")

    def _passing(self, place: Place) -> None:
        x, y = place.x + place.width / 2, self._y(place.rank)
        self.parts.append(_path(f"M{x:g} {y + _MODULE_H:g}V{y:g}", "up"))
        rule = self.graph.interfaces.get(place.carries)
        if rule is not None and rule.takes:
            self.parts.append(_path(f"M{x + 9:g} {y + _MODULE_H:g}V{y:g}", "message"))

    def _lock(self) -> None:
        xs = [p.x for p in self.places.values()]
        x, y = min(xs) - 14, self.top - 9
        width = max(xs) + _MODULE_W + 14 - x
        self.parts.insert(0, _box(x, y, width, self.bottom + 9 - y, "lock", "locked"))

    def _curve(
        self,
        start: tuple[float, float],
        free: tuple[float, float],
        end: tuple[float, float],
        kind: str,
        *,
        head: bool,
    ) -> None:
        """Go straight up to ``free``, from there to ``end``, upright at both ends, with or without an arrowhead."""
        (x0, y0), (x1, y1), (x2, y2) = start, free, end
        bend = (y1 + y2) / 2
        way = f"M{x0:g} {y0:g}V{y1:g}" + (
            f"V{y2:g}" if x1 == x2 else f"C{x1:g} {bend:g} {x2:g} {bend:g} {x2:g} {y2:g}"
        )
        self.parts.append(_path(way, kind))
        if head:
            self.parts.append(_head((x2, y2 + 8), (x2, y2), kind))

    def _arrow(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        way = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
        self.parts += [_path(way, kind), _head(points[-2], points[-1], kind)]

    def _text(self, x: float, y: float, words: str, kind: str) -> None:
        self.parts.append(f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(words)}</text>')

    # Legend

    def _legend(self, y: float) -> float:
        """Draw the legend from ``y`` on; return where it ends."""
        rules = [i for i in self.graph.interfaces.values()]
        entries = [("up", "h: activation, forward")]
        if self.locked:
            entries += [("credit", "δ: gradient, back through every part")]
        else:
            if any(rule.gives for rule in rules):
                entries += [("credit", "δ̂: credit from the rule, at once"), ("look", "what the rule sees")]
            if any(rule.takes for rule in rules):
                entries += [("message", "δ: true message, trains only the rule")]
            entries += [("cut", "cut: no gradient passes")]
        for kind, words in entries:
            if kind == "cut":
                self.parts.append(f'<line class="cut" x1="8" x2="38" y1="{y - 4:g}" y2="{y - 4:g}"/>')
            else:
                self._arrow([(8, y - 4), (38, y - 4)], kind)
            self._text(46, y, words, "left")
            y += 17
        note = _NOTES.get(self.graph.engine, f"Engine: {self.graph.engine}.")
        for line in wrap(note, 58):
            self._text(8, y + 2, line, "left")
            y += 17
        return y


def _module_lines(module: Module) -> list[str]:
    size = "" if module.num_parameters is None else f"{module.num_parameters:,} parameters"
    if module.num_hidden:
        more = f"… {module.num_hidden} more" + (" alike" if module.alike else "")
        return [more, shorten(module.name, 23), *([f"{module.num_parameters:,} each"] if size else [])]
    lines = [shorten(module.name, 19)]
    if module.parts and module.parts != (module.name,):
        lines += [shorten(", ".join(module.parts), 20)]
    return lines + ([size] if size else [])


def _rule_lines(interface: Interface) -> list[str]:
    kind, _, settings = interface.rule.partition("(")
    settings = settings.removesuffix(")")
    lines = [shorten(kind, 24)]
    lines += wrap(shorten(settings, 52), 27)[:2] if settings else []
    return lines + ([f"{interface.num_parameters:,} parameters"] if interface.num_parameters else [])


def _box(x: float, y: float, width: float, height: float, kind: str, about: str) -> str:
    return (
        f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5">'
        f"<title>{escape(about)}</title></rect>"
    )


def _path(way: str, kind: str) -> str:
    return f'<path class="{kind}" d="{way}"/>'


def _head(before: tuple[float, float], at: tuple[float, float], kind: str) -> str:
    """Return an arrowhead at a point, for a line that comes upright or level."""
    (x0, y0), (x, y) = before, at
    length = max(abs(x - x0), abs(y - y0)) or 1
    dx, dy = (x - x0) / length, (y - y0) / length
    left = f"{x - 7 * dx - 3.5 * dy:g} {y - 7 * dy + 3.5 * dx:g}"
    right = f"{x - 7 * dx + 3.5 * dy:g} {y - 7 * dy - 3.5 * dx:g}"
    return f'<path class="head {kind}" d="M{x:g} {y:g}L{left}L{right}Z"/>'

"""The picture of a decoupled network, as SVG: a chain of modules, with the rule of every cut at its side.

What goes up is the activation `h`; what comes back at once is the rule's credit; the true message trains the rule.
A module that is fed by another one than its predecessor is named in a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap

from ..records.parts import Graph, GraphInterface
from .words import shorten, text

__all__ = ["Chain", "chain_of"]

#: What rules that are no synthetic gradient give to the module below, and take from the one above. A
#: record may say so itself (``credit``, ``observes``); all other rules do both.
_GIVES_NOTHING = ("NoBackprop",)
_TAKES_NOTHING = ("NoBackprop", "LocalLoss")
_NOTES = {
    "in-process": "Each module updates as soon as its own part is done.",
    "layer-parallel": "All modules update in one batched step, each on a batch of its own.",
    "plain": "One training loop: all modules update in lock step.",
    "backprop": "Locked: each part waits for the gradient from above.",
}
_LONG, _ENDS = 6, 2  # modules; of more, those between the ends are drawn as one
_W, _H, _GAP, _RULE_X, _RULE_W = 150, 44, 66, 196, 176
_LINE = 13  # of text


@dataclass(frozen=True, slots=True)
class Chain:
    """A picture and what it cannot show.

    Attributes:
        svg: the chain.
        branches: a line for each module that is fed by another one than its predecessor.
    """

    svg: str
    branches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Box:
    lines: tuple[str, ...]
    interface: GraphInterface | None


def chain_of(graph: Graph) -> Chain | None:
    """Return the picture of a graph that a record holds; None if it holds no module."""
    modules = graph.modules
    if not modules:
        return None
    locked = graph.engine == "backprop"
    interfaces = {text(i.name, 200): i for i in graph.interfaces}
    boxes = [
        _Box(
            _said(text(m.name, 200), m.parts, m.num_parameters),
            next((interfaces[end] for end in m.ends if end in interfaces), None),
        )
        for m in modules
    ]
    if locked:
        parts = [part for m in modules for part in m.parts or (text(m.name, 200),)]
        boxes = [_Box((shorten(part, 20),), None) for part in parts]
    branches: list[str] = []
    for before, module in zip([None, *modules], modules, strict=False):
        usual = before.ends[-1:] if before is not None else ()
        if module.inputs and tuple(module.inputs) != usual and not locked:
            branches.append(f"{text(module.name, 60)} is fed by {text(list(module.inputs), 120)}")
    about = f"Graph of {len(boxes)} modules, engine {text(graph.engine, 30)}"
    return Chain(_svg(_shortened(boxes), about, graph.engine or "", locked=locked), tuple(branches))


def _said(name: str, parts: Sequence[str], size: float | None) -> tuple[str, ...]:
    lines = [shorten(name, 21)]
    lines += [shorten(", ".join(parts), 22)] if parts and tuple(parts) != (name,) else []
    return (*lines, *([f"{size:,.0f} parameters"] if size is not None else []))


def _shortened(boxes: Sequence[_Box]) -> list[_Box]:
    if len(boxes) <= _LONG:
        return list(boxes)
    hidden = boxes[_ENDS:-_ENDS]
    rules = {i.rule for box in hidden if (i := box.interface) is not None}
    same = hidden[-1].interface if len(rules) == 1 else None
    middle = _Box(
        (f"… {len(hidden)} more", shorten(f"{hidden[0].lines[0]} … {hidden[-1].lines[0]}", 22)), same
    )
    return [*boxes[:_ENDS], middle, *boxes[-_ENDS:]]


def _svg(boxes: Sequence[_Box], about: str, engine: str, *, locked: bool) -> str:
    gap = 30 if locked else _GAP
    bottom = 34 + len(boxes) * _H + (len(boxes) - 1) * gap
    parts = (
        [f'<rect class="lock" x="4" y="24" width="{_W + 28}" height="{bottom - 14}" rx="5"/>']
        if locked
        else []
    )
    for k, box in enumerate(boxes):
        y = bottom - (k + 1) * _H - k * gap
        parts += [_rect(18, y, _W, _H, "module", box.lines)]
        if k == len(boxes) - 1:
            parts += [_text(18 + _W / 2, y - 18, "loss", "strong"), _arrow(18 + _W / 2, y, y - 14, "up")]
        else:
            parts += _between(box.interface, y, gap, locked=locked)
    parts += [
        _arrow(18 + _W / 2, bottom + 24, bottom, "up"),
        _text(26 + _W / 2, bottom + 24, "data x", "left"),
    ]
    height = bottom + 48
    for words in _legend(boxes, engine, locked=locked):
        parts.append(_text(4, height, words, "left"))
        height += 16
    width = _RULE_X + _RULE_W + 4
    return (
        f'<svg class="graph" viewBox="0 0 {width} {height:g}" style="max-width:{width}px" role="img" '
        f'aria-label="{escape(about)}"><title>{escape(about)}</title>{"".join(parts)}</svg>'
    )


def _between(interface: GraphInterface | None, y: float, gap: float, *, locked: bool) -> list[str]:
    """Return what lies between a module, whose upper edge is at ``y``, and the next: arrows, cut and rule."""
    up, down = 18 + _W / 2 - 20, 18 + _W / 2 + 20
    parts = [_arrow(up, y, y - gap, "up")]
    if interface is None:
        words = [
            _text(up - 5, y - gap / 2 + 4, "h", "right"),
            _text(down + 6, y - gap / 2 + 4, "δ", "left credit"),
        ]
        return [*parts, *words, _arrow(down, y - gap, y, "credit")] if locked else parts
    kind, _, settings = text(interface.rule, 300).partition("(")
    gives, takes = _gives(interface), _takes(interface)
    shape = (
        "×".join(text(n, 8) for n in interface.shape[:4]) if isinstance(interface.shape, list | tuple) else ""
    )
    size = (f"{interface.num_parameters:,.0f} parameters",) if interface.num_parameters else ()
    lines = (shorten(kind, 26), *wrap(shorten(settings.removesuffix(")"), 56), 29)[:2], *size)
    middle = y - gap / 2
    parts += [
        f'<line class="cut" x1="4" x2="{_RULE_X - 4}" y1="{middle:g}" y2="{middle:g}"/>',
        _rect(_RULE_X, middle - 29, _RULE_W, 58, "rule" if gives else "rule dull", lines),
        _text(up - 5, y - 8, shorten(f"h {shape}", 11), "right"),
    ]
    if takes:
        way = f"M{down + 20:g} {y - gap:g}V{middle - 14:g}H{_RULE_X:g}"
        parts += [f'<path class="message" d="{way}"/>', _text(down + 26, middle - 18, "δ", "left message")]
    if gives:
        way = f"M{_RULE_X:g} {middle + 14:g}H{down:g}V{y:g}"
        parts += [f'<path class="credit" d="{way}"/>', _head(down, y, 7, "credit")]
        parts += [_text(down + 6, middle + 28, "δ̂ credit", "left credit")]
    return parts


def _gives(interface: GraphInterface) -> bool:
    kind = text(interface.rule, 300).partition("(")[0]
    return kind not in _GIVES_NOTHING if interface.credit is None else bool(interface.credit)


def _takes(interface: GraphInterface) -> bool:
    kind = text(interface.rule, 300).partition("(")[0]
    return kind not in _TAKES_NOTHING if interface.observes is None else bool(interface.observes)


def _legend(boxes: Sequence[_Box], engine: str, *, locked: bool) -> list[str]:
    lines = ["h: activation, forward"]
    if locked:
        lines += ["δ: gradient, back through every part"]
    rules = [box.interface for box in boxes if box.interface is not None]
    lines += ["dashed: a cut, no gradient passes"] if rules else []
    lines += ["δ̂: credit from the rule, at once"] if any(map(_gives, rules)) else []
    lines += ["δ: true message, trains only the rule"] if any(map(_takes, rules)) else []
    return [*lines, _NOTES.get(engine, f"Engine: {text(engine, 30)}.")]


def _rect(x: float, y: float, width: float, height: float, kind: str, lines: Sequence[str]) -> str:
    first = y + (height - _LINE * len(lines)) / 2 + 10
    words = [
        _text(x + width / 2, first + k * _LINE, line, "strong" * (k == 0)) for k, line in enumerate(lines)
    ]
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width}" height="{height}" rx="5"/>' + "".join(
        words
    )


def _arrow(x: float, start: float, end: float, kind: str) -> str:
    return f'<path class="{kind}" d="M{x:g} {start:g}V{end:g}"/>' + _head(
        x, end, 7 if end > start else -7, kind
    )


def _head(x: float, y: float, size: float, kind: str) -> str:
    return f'<path class="head {kind}" d="M{x:g} {y:g}L{x - 3.5:g} {y - size:g}L{x + 3.5:g} {y - size:g}Z"/>'


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(words)}</text>'

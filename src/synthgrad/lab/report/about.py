"""What the experiments with recurrent networks train, for readers who know the methods' names only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..records import Record
from .fields import text

__all__ = ["about_recurrent"]

_BEYOND = (
    "Gradients go back through the T steps of an unroll: with bptt nothing is learned of what comes later, with dni "
    "a synthetic gradient at the unroll's end stands for it."
)
_ABOUT: Mapping[str, str] = {
    "copy": f"A network reads a sequence and writes it out again; sequences grow as they are solved. {_BEYOND}",
    "repeat_copy": (
        "A network reads a sequence and a number, and writes the sequence out that many times; sequence and number "
        f"grow as they are solved. {_BEYOND}"
    ),
    "two_stages": "Networks cut in two, whose halves train in one process or in two.",
    "charlm": f"A network reads a text and foretells every next character. {_BEYOND}",
    "multinet": (
        "Two networks that tick at different rates: A sees a digit at every step and counts odd ones, B is sent a "
        "message now and then and counts threes. With bptt, backpropagation through both, A waits for B; with dni a "
        "synthetic gradient of the message lets A update at once, with cdni one that is given the digits."
    ),
}
_OTHERS = f"A network with a state learns from sequences. {_BEYOND}"


def about_recurrent(records: Iterable[Record]) -> str:
    """Return what runs of a recurrent network do, in a few sentences."""
    names = (text(r.get("experiment"), 40) for r in records)
    return next((_ABOUT[name] for name in names if name in _ABOUT), _OTHERS)

"""Settings that the command line offers: a field of a dataclass says its help once, and its option is made from it.

This module does not load PyTorch, because help and completion must not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

__all__ = ["Option", "option", "options_of"]

_KEY = "option"


@dataclass(frozen=True, slots=True)
class Option:
    """How the command line offers a field.

    Attributes:
        help: one sentence.
        flag: name of the option, such as ``--batch-size``; empty for the field's own name.
        kind: type of a value: ``int``, ``float``, ``str`` or ``bool``; a bool is a switch without a value.
        listed: whether several values are accepted, separated by commas; the field then gets a tuple.
        choices: the accepted values, for help and completion; empty for any.
        least: smallest accepted number, or None.
        metavar: stands for the value in the help; empty for one made from ``choices`` or ``kind``.
        default: shown in the help, because the field's own default may be the tier's; empty for none.
    """

    help: str
    flag: str = ""
    kind: type = str
    listed: bool = False
    choices: Sequence[str] = ()
    least: int | None = None
    metavar: str = ""
    default: str = ""


def option(default: Any = MISSING, /, help: str = "", **how: Any) -> Any:
    """Return a dataclass field that the command line offers as an option.

    Args:
        default: the field's default, used where the option is not given.
        help: one sentence for the help text.
        how: further fields of `Option`.
    """
    return field(default=default, metadata={_KEY: Option(help, **how)})


def options_of(*classes: Any) -> dict[str, Option]:
    """Return the options of dataclasses by field name, in the order of their declaration; the first of a name counts."""
    found: dict[str, Option] = {}
    for each in classes:
        for entry in fields(each):
            if _KEY in entry.metadata:
                found.setdefault(entry.name, entry.metadata[_KEY])
    return found

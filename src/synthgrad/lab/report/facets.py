"""What is particular about a run's rule and updates, in words for the names of rows.

Runs of language models differ in more than their methods: for them there is a list of what they may differ in, and what
most of them share is left out of their names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..records import Record
from ..records.parts import Rule
from .words import TEXTS, text

__all__ = ["DELAY", "FACETS", "MICROBATCHES", "MODULES", "OPTIMIZER", "Facet"]
__all__ += ["common_facets", "hidden_words", "learning_words", "rule_words", "short_label", "update_words"]


def rule_words(rule: Rule) -> str:
    """Return the model of a rule and how it learns; ``linear`` if nothing is particular."""
    words = ["like its layer" if rule.like_layer else hidden_words(rule.hidden), *learning_words(rule)]
    words += ["not decayed"] if rule.constant_lr else []
    return ", ".join(words + (["mean-reduced units"] if rule.per_example is False else []))


def hidden_words(hidden: object) -> str:
    """Return the widths of hidden layers."""
    sizes = "×".join(text(n, 8) for n in hidden[:8]) if isinstance(hidden, list | tuple) else ""
    return f"hidden {sizes}" if sizes else "linear"


def learning_words(rule: Rule) -> list[str]:
    """Return how a rule's model learns, where it is not as the network does."""
    words = ["no norm"] if rule.norm is False else []
    return words + ([f"lr ×{rule.lr_factor:g}"] if rule.lr_factor not in (None, 1) else [])


@dataclass(frozen=True, slots=True)
class Facet:
    """Something in which the language models of one table may differ.

    Attributes:
        name: what it is, in a few words.
        value: of a run; empty where there is none.
        words: what a row's name says of a value.
        partial: is a run without a value not concerned? Else it differs from those that have one.
        usual: do names leave out the value that most rows have?
    """

    name: str
    value: Callable[[Record], str]
    words: Callable[[str], str]
    partial: bool = False
    usual: bool = False


def _optimizer(record: Record) -> str:
    return text(record.config.get("optimizer") or "", 20)


def _engine(record: Record) -> str:
    if record.cell.engine == "plain":
        return "" if record.method == "backprop" else "plain loop"
    return text(record.cell.engine, 20) if record.cell.engine not in (None, "in-process") else ""


def _modules(record: Record) -> str:
    found = record.cell.number("modules")
    return "" if found is None else f"{found:g}"


def _private_blocks(record: Record) -> str:
    rule = record.config.rule
    if rule.get("head") != "tokens":
        return ""
    found = rule.number("blocks")
    return f"{1.0 if found is None else found:g}"  # 1, the default, is not recorded


def _blocks_words(value: str) -> str:
    if value == "0":
        return "linear head"
    return f"{value} private block" + ("" if value == "1" else "s")


def _weight(record: Record) -> str:
    if record.method != "late_correction":
        return ""
    found = record.config.rule.number("weight")
    return f"{0.5 if found is None else found:g}"  # 0.5, the default, is not recorded


def _delay(record: Record) -> str:
    found = record.config.rule.delay
    return f"{found:g}" if found else ""


def _versions(record: Record) -> str:
    found = record.config.number("versions")
    return "" if found is None else {1: "PACI", 2: "2BW"}.get(int(found), f"{found:g} versions")


def _cuts(record: Record) -> str:
    return text(record.cell.at, 60) if record.cell.at else ""


def _microbatches(record: Record) -> str:
    found = record.config.number("accumulate")
    return "" if found in (None, 1) else f"{found:g}"


def _error_feedback(record: Record) -> str:
    return "yes" if record.config.get("error_feedback") else ""


#: Settings of a rule that `_of_rule` need not name: `rule_words` or another facet does.
_NAMED = frozenset(
    ("hidden", "norm", "like_layer", "lr_factor", "constant_lr", "per_example", "delay", "blocks", "weight")
)


def _of_rule(record: Record) -> str:
    """Return what else is particular about a rule, in words; settings that nobody foresaw by their names."""
    rule = record.config.rule
    words = [rule_words(rule)] if rule_words(rule) != "linear" else []
    for name, value in rule.items():
        if name in _NAMED or (name, value) == ("head", "tokens"):
            continue
        said = TEXTS["rule"].get(name)
        words.append(said.format(text(value, 16)) if said else f"{text(name, 20)} {text(value, 16)}")
    return ", ".join(words).replace("_", " ")


OPTIMIZER = Facet("optimizer", _optimizer, str, partial=True, usual=True)
MODULES = Facet("modules", _modules, "{} modules".format, partial=True, usual=True)
DELAY = Facet("delay", _delay, "delay {}".format)
MICROBATCHES = Facet("microbatches", _microbatches, "{} microbatches".format)
#: In the order in which names say them.
FACETS = (
    OPTIMIZER,
    Facet("engine", _engine, str),
    MODULES,
    Facet("cut after", _cuts, "cut after {}".format, partial=True),
    Facet("private blocks", _private_blocks, _blocks_words, partial=True, usual=True),
    Facet("rule", _of_rule, str),
    DELAY,
    Facet("weight", _weight, "weight {}".format, partial=True),
    MICROBATCHES,
    Facet("versions of weights", _versions, str),
    Facet("error feedback", _error_feedback, lambda _: "error feedback"),
)


def common_facets(records: Sequence[Record], *, but: Facet | None = None) -> dict[str, str]:
    """Return what the names of some language models' rows need not say: facets by name, with their value.

    Args:
        records: one for each row.
        but: a facet that names do not say, whatever its value.
    """
    common: dict[str, str] = {}
    for facet in FACETS:
        values = [v for r in records if (v := facet.value(r)) or not facet.partial]
        if values and (facet.usual or len(set(values)) == 1):
            common[facet.name] = Counter(values).most_common(1)[0][0]
    common = {name: value for name, value in common.items() if value}
    rows = {short_label(r, {}, but=but): short_label(r, common, but=but) for r in records}
    return common if len(set(rows.values())) == len(rows) else {}


def short_label(record: Record, common: Mapping[str, str], *, but: Facet | None = None) -> str:
    """Return the name of a language model's row: its method, and what is not common; one facet may be left out."""
    words = [
        f.words(v) for f in FACETS if f is not but and (v := f.value(record)) and v != common.get(f.name)
    ]
    return text(record.method, 40) + (f" ({', '.join(words)})" if words else "")


def update_words(record: Record) -> list[str]:
    """Return how updates are made, where it is not by Adam from each batch."""
    named = ("optimizer", "microbatches", "versions of weights", "error feedback")
    words = [f.words(v) for f in FACETS if f.name in named and (v := f.value(record))]
    return [word for word in words if word != "Adam"]

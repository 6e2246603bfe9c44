"""What is particular about a run's rule and updates, in words for the names of rows.

Runs of language models differ in more than their methods: for them there is a list of what they may differ in, and what
most of them share is left out of their names. Their learning rates stand in a column of their own, and in the names of
rows that differ in nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from ..records import Record
from ..records.parts import Rule, as_number
from .words import TEXTS, text

__all__ = ["DELAY", "FACETS", "MICROBATCHES", "MODULES", "OPTIMIZER", "RATE", "SHARE", "WEIGHT", "Facet"]
__all__ += ["common_facets", "hidden_words", "learning_words", "row_names", "rule_words", "setting_words"]
__all__ += ["short_label", "update_words"]


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


def setting_words(name: str, value: object) -> str:
    """Return the words for a setting of a rule that is recorded where it is not the default."""
    said = TEXTS["rule"].get(name, f"{text(name, 20)} {{}}")
    if name == "share":
        return said.format(_share_words(value))
    nothing = "by agreement" if name == "weight" else "none"
    return said.format(nothing if value is None or value in ((), []) else text(value, 16))


def _share_words(value: object) -> str:
    found = as_number(value)
    return text(value, 16) if found is None else f"{100 * found:g} %"


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
    rule = record.config.rule
    if "weight" not in rule:
        return "0.5"  # the default of older runs, which is not recorded
    found = rule.number("weight")
    return (
        "by agreement"
        if rule["weight"] is None
        else text(rule["weight"], 16)
        if found is None
        else f"{found:g}"
    )


def _share(record: Record) -> str:
    rule = record.config.rule
    return _share_words(rule["share"]) if "share" in rule else ""


def _rate(record: Record) -> str:
    return "" if record.config.lr is None else f"{record.config.lr:g}"


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


def _tied_lag(record: Record) -> str:
    found = record.config.number("tied_lag")
    return f"{found:g}" if found else ""


def _free_running(record: Record) -> str:
    return "yes" if record.config.get("free_running") else ""


def _error_feedback(record: Record) -> str:
    return "yes" if record.config.get("error_feedback") else ""


#: Settings of a rule that `_of_rule` need not name: `rule_words` or another facet does.
_NAMED = frozenset(
    (
        *("hidden", "norm", "like_layer", "lr_factor", "constant_lr", "per_example"),
        *("delay", "blocks", "weight", "share"),
    )
)


def _of_rule(record: Record) -> str:
    """Return what else is particular about a rule, in words; settings that nobody foresaw by their names."""
    rule = record.config.rule
    words = [rule_words(rule)] if rule_words(rule) != "linear" else []
    for name, value in rule.items():
        if name not in _NAMED and (name, value) != ("head", "tokens"):
            words.append(setting_words(name, value))
    return ", ".join(words).replace("_", " ")


OPTIMIZER = Facet("optimizer", _optimizer, str, partial=True, usual=True)
MODULES = Facet("modules", _modules, "{} modules".format, partial=True, usual=True)
DELAY = Facet("delay", _delay, "delay {}".format)
WEIGHT = Facet("weight", _weight, "weight {}".format, partial=True)
SHARE = Facet("share of messages", _share, "{} of messages".format)
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
    WEIGHT,
    SHARE,
    MICROBATCHES,
    Facet("versions of weights", _versions, str),
    Facet("lag of tied weights", _tied_lag, "tied weights {} late".format),
    Facet("free-running", _free_running, lambda _: "free-running"),
    Facet("error feedback", _error_feedback, lambda _: "error feedback"),
)
#: None of these: names say it where nothing else tells two rows apart.
RATE = Facet("learning rate", _rate, "lr {}".format)


def common_facets(records: Sequence[Record], *, but: Collection[Facet] = ()) -> dict[str, str]:
    """Return what the names of some language models' rows need not say: facets by name, with their value.

    Args:
        records: one for each row.
        but: facets that names do not say, whatever their values.
    """
    common: dict[str, str] = {}
    for facet in FACETS:
        values = [v for r in records if (v := facet.value(r)) or not facet.partial]
        if values and (facet.usual or len(set(values)) == 1):
            common[facet.name] = Counter(values).most_common(1)[0][0]
    common = {name: value for name, value in common.items() if value}
    rows = {short_label(r, {}, but=but): short_label(r, common, but=but) for r in records}
    return common if len(set(rows.values())) == len(rows) else {}


def short_label(
    record: Record, common: Mapping[str, str], *, but: Collection[Facet] = (), rate: bool = False
) -> str:
    """Return the name of a language model's row: its method, and what is not common.

    Args:
        record: one of its runs.
        common: what names leave out: facets by name, with their value.
        but: facets that names do not say, whatever their values.
        rate: is the learning rate said?
    """
    words = [
        f.words(v) for f in FACETS if f not in but and (v := f.value(record)) and v != common.get(f.name)
    ]
    words += [RATE.words(v)] if rate and (v := RATE.value(record)) else []
    return text(record.method, 40) + (f" ({', '.join(words)})" if words else "")


def row_names(
    records: Sequence[Record], common: Mapping[str, str], *, but: Collection[Facet] = ()
) -> list[str]:
    """Return the names of some language models' rows, with the learning rate where rows differ in nothing else.

    Args:
        records: one for each row.
        common: what names leave out, from `common_facets`.
        but: facets that names do not say; with `RATE` among them no name says the rate.
    """
    names = [short_label(r, common, but=but) for r in records]
    rates: dict[str, set[str]] = {}
    for name, record in zip(names, records, strict=True):
        rates.setdefault(name, set()).add(RATE.value(record))
    several = {name for name, found in rates.items() if len(found) > 1 and RATE not in but}
    return [
        short_label(r, common, but=but, rate=name in several) for name, r in zip(names, records, strict=True)
    ]


def update_words(record: Record) -> list[str]:
    """Return how updates are made, where it is not by Adam from each batch."""
    named = ("optimizer", "microbatches", "versions of weights", "error feedback")
    words = [f.words(v) for f in FACETS if f.name in named and (v := f.value(record))]
    return [word for word in words if word != "Adam"]

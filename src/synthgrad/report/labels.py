"""The names of rows and tables: what is particular about a run, in few words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..records import Record
from ..records.names import METHODS
from .fields import number, part, text

__all__ = ["OF_METHOD", "ORDER", "position", "row_label", "rule_settings", "title_of"]

#: Methods that come first, in this order; others follow as they were recorded.
ORDER = tuple(METHODS)

#: Settings of a cell that methods of one table may differ in: they belong to the method.
OF_METHOD = ("update_prob", "engine", "at")


def position(record: Record) -> int:
    """Return the place of a record's method among the others."""
    method = record.get("method")
    return ORDER.index(method) if method in ORDER else len(ORDER)


def rule_settings(record: Record) -> dict[str, Any]:
    """Return the settings of a record's rule; benchmarks name theirs by a text, which counts as none."""
    return part(part(record, "config"), "rule")


#: Further settings of a rule, recorded where they are not the default, and the words for them.
_FURTHER = {
    "shrink": "gradient ×{}",
    "input_hidden": "I with hidden {}",
    "input_lr_factor": "I lr ×{}",
    "warm_up": "from batch {}",
    "freeze_after": "frozen after batch {}",
    "min_cosine": "from cosine {}",
    "kernel": "kernel {}",
    "maps": "label maps",
    "head": "{} head",
    "pool": "pooled to {}",
    "critic": "critic of the {}",
}


def row_label(record: Record) -> str:
    """Name of a row: the method, and what is particular about it."""
    cell = part(record, "cell")
    label = text(record.get("method"), 40)
    parts: list[str] = []
    if (prob := number(cell, "update_prob")) not in (None, 1):
        parts.append(f"p={prob:g}")
    if cell.get("engine") == "plain" and label != "backprop":
        parts.append("plain loop")
    if cell.get("at"):
        parts.append("cut after " + text(cell["at"], 60))
    rule, experiment = rule_settings(record), record.get("experiment")
    about = _rule_label(rule)
    if str(experiment).endswith("_search") or about != "linear":
        parts.append(about)
    decay = number(rule, "decay")
    if decay is not None or (experiment == "stale" and label == "stale"):
        parts.append(f"decay {decay or 0.0:g}")  # 0, the default, is not recorded
    if (delay := number(rule, "delay")) not in (None, 1 if label == "delayed" else 0):
        parts.append(f"delay {delay:g}")
    parts += ["true messages"] if rule.get("true_messages") is True else []
    parts += [
        words.format(text(rule[name] or "none", 16)) for name, words in _FURTHER.items() if name in rule
    ]
    return f"{label} ({', '.join(parts)})" if parts else label


def _rule_label(rule: Mapping[str, Any]) -> str:
    hidden = rule.get("hidden")
    sizes = "×".join(text(n, 8) for n in hidden[:8]) if isinstance(hidden, list | tuple) else ""
    words = ["like its layer" if rule.get("like_layer") else f"hidden {sizes}" if sizes else "linear"]
    words += [] if rule.get("norm", True) else ["no norm"]
    words += [f"lr ×{factor:g}"] if (factor := number(rule, "lr_factor")) not in (None, 1) else []
    words += ["not decayed"] if rule.get("constant_lr") else []
    words += [] if rule.get("per_example", True) else ["mean-reduced units"]
    return ", ".join(words)


def title_of(record: Record) -> str:
    """Title of the table that a record stands in: what is trained on what, for how long."""
    cell = part(record, "cell")
    size = f"{text(cell.get('layers'), 12)} layers × {text(cell.get('width'), 12)}"
    words = [text(record.get("experiment"), 40), text(record.get("tier"), 20), text(cell.get("data"), 40)]
    words += [f"{text(cell.get('arch'), 60)} {size if cell.get('layers') else ''}".strip()]
    words += [f"{text(record.get('steps'), 12)} steps of {text(record.get('batch_size'), 12)}"]
    config = part(record, "config")
    words += [text(config["precision"], 12)] if config.get("precision") else []
    words += [word for word in ("compiled", "augment") if config.get(word)]
    return " · ".join(words)

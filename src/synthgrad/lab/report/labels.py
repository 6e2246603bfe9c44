"""The names of rows and tables: what is particular about a run, in few words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..records import Record
from ..records.names import METHODS
from .fields import is_recurrent, number, part, text

__all__ = ["OF_METHOD", "place_of", "position", "row_label", "rule_settings", "title_of"]

#: Methods that come first, in this order; others follow as they were recorded.
_ORDER = tuple(METHODS)

#: Methods of recurrent networks that take the place, and the colour, of another: no table has both.
_TWINS = {"bptt": "backprop", "dni_aux": "cdni", "dni_ls": "local_loss", "dni_ls_aux": "sobolev"}

#: Settings of a cell that methods of one table may differ in: they belong to the method.
OF_METHOD = ("update_prob", "engine", "at")


def place_of(method: Any) -> int | None:
    """Return the place of a method among the others, which is that of its colour; None if it is not known."""
    name = _TWINS.get(method, method) if isinstance(method, str) else None
    return _ORDER.index(name) if name in _ORDER else None


def position(record: Record) -> int:
    """Return the place of a record's method in tables: those that are not known come last."""
    place = place_of(record.get("method"))
    return len(_ORDER) if place is None else place


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
    if (engine := cell.get("engine")) in ("layer-parallel", "stages"):
        parts.append(str(engine))
    if cell.get("at"):
        parts.append("cut after " + text(cell["at"], 60))
    rule, experiment = rule_settings(record), record.get("experiment")
    of_a_cut = "like_layer" in rule or number(cell, "unroll") is None  # not of what lies between two unrolls
    if of_a_cut and label != "bptt":  # which has no rule
        about = _rule_label(rule)
        parts += [about] if str(experiment).endswith("_search") or about != "linear" else []
    else:
        parts += [*_boundary_words(rule), *_copying_words(record)]
    decay = number(rule, "decay")
    if decay is not None or (experiment == "stale" and label == "stale"):
        parts.append(f"decay {decay or 0.0:g}")  # 0, the default, is not recorded
    if (delay := number(rule, "delay")) not in (None, 1 if label == "delayed" else 0):
        parts.append(f"delay {delay:g}")
    parts += ["without s_B"] if rule.get("receiver") is False else []
    parts += ["true messages"] if rule.get("true_messages") is True else []
    parts += [
        words.format(text(rule[name] or "none", 16)) for name, words in _FURTHER.items() if name in rule
    ]
    return f"{label} ({', '.join(parts)})" if parts else label


def _rule_label(rule: Mapping[str, Any]) -> str:
    words = ["like its layer" if rule.get("like_layer") else _hidden_words(rule), *_learning_words(rule)]
    words += ["not decayed"] if rule.get("constant_lr") else []
    words += [] if rule.get("per_example", True) else ["mean-reduced units"]
    return ", ".join(words)


def _boundary_words(rule: Mapping[str, Any]) -> list[str]:
    """Return what differs from the paper between two unrolls: there ``M`` is as wide as the network, α is 0.1."""
    words = [] if rule.get("hidden") is None else [_hidden_words(rule)]
    words += _learning_words(rule)
    words += [f"α {alpha:g}"] if (alpha := number(rule, "alpha")) not in (None, 0.1) else []
    if (window := number(rule, "window")) not in (None, 1):
        words.append(f"λ {number(rule, 'mix') or 0.0:g} over {window:g} unrolls")
    words += [f"aux ×{weight:g}"] if (weight := number(rule, "aux_weight")) not in (None, 1) else []
    words += [f"aux {_hidden_words({'hidden': rule['aux_hidden']})}"] if "aux_hidden" in rule else []
    for name, usual, said in _BOUNDARY:
        words += [said.format(value)] if (value := number(rule, name)) not in (None, usual) else []
    return words


def _copying_words(record: Record) -> list[str]:
    """Return what differs between the rows of a search, and how rows of episodes begin."""
    config = part(record, "config")
    words = ["rows in step"] if config.get("spread") == 1 else []
    if record.get("experiment") == "copy_search" and (lr := number(config, "lr")) is not None:
        words.append(f"lr {lr:g}")
    return words


#: Further settings of what is between unrolls, what is usual, and the words for them.
_BOUNDARY = (
    ("observe_every", 1, "M learns at 1 unroll in {:g}"),
    ("rate", 0.7, "rate {:g}"),
    ("damping", 0.01, "damping {:g}"),
    ("max_norm", None, "clipped to {:g}"),
)


def _hidden_words(rule: Mapping[str, Any]) -> str:
    hidden = rule.get("hidden")
    sizes = "×".join(text(n, 8) for n in hidden[:8]) if isinstance(hidden, list | tuple) else ""
    return f"hidden {sizes}" if sizes else "linear"


def _learning_words(rule: Mapping[str, Any]) -> list[str]:
    words = [] if rule.get("norm", True) else ["no norm"]
    return words + ([f"lr ×{factor:g}"] if (factor := number(rule, "lr_factor")) not in (None, 1) else [])


def title_of(record: Record) -> str:
    """Title of the table that a record stands in: what is trained on what, for how long."""
    config = part(record, "config")
    words = _recurrent_words(record) if is_recurrent(record) else _network_words(record)
    words += [f"{text(record.get('steps'), 12)} steps of {text(record.get('batch_size'), 12)}"]
    words += [text(config["precision"], 12)] if config.get("precision") else []
    words += [word for word in ("compiled", "augment") if config.get(word)]
    return " · ".join(words)


def _network_words(record: Record) -> list[str]:
    """Return experiment, tier, data and network."""
    cell = part(record, "cell")
    size = f"{text(cell.get('layers'), 12)} layers × {text(cell.get('width'), 12)}"
    words = [text(record.get("experiment"), 40), text(record.get("tier"), 20), text(cell.get("data"), 40)]
    return [*words, f"{text(cell.get('arch'), 60)} {size if cell.get('layers') else ''}".strip()]


#: What a recurrent network's cell says of its times, and how a title says it.
_LENGTHS = {"unroll": "T=", "period": "period "}


def _recurrent_words(record: Record) -> list[str]:
    """Return experiment, tier, data, network, and how long its unrolls or its periods are."""
    cell = part(record, "cell")
    experiment, data = text(record.get("experiment"), 40), text(cell.get("data"), 40)
    layers, width = cell.get("layers"), cell.get("width")
    size = f" {text(layers, 12)} layer{'' if layers == 1 else 's'}" if layers else ""
    size += f" × {text(width, 12)}" if width else ""
    words = [experiment, text(record.get("tier"), 20), *([data] if data != experiment else [])]
    words += [text(cell.get("arch"), 60) + size]
    return words + [f"{sign}{text(cell[n], 12)}" for n, sign in _LENGTHS.items() if cell.get(n) is not None]

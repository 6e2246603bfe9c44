"""The names of rows and tables: what is particular about a run, in few words."""

from __future__ import annotations

from collections.abc import Mapping

from ..names import METHODS
from ..records import Record
from ..records.parts import Rule, as_number
from .facets import hidden_words, learning_words, rule_words, setting_words, short_label, update_words
from .words import TEXTS, text

__all__ = [
    "OF_METHOD",
    "is_bench",
    "is_language_model",
    "is_recurrent",
    "is_sparse",
    "lag_of",
    "network_words",
    "place_of",
    "position",
    "row_label",
    "title_of",
    "updates_of",
    "windows_of",
]

#: Methods that come first, in this order; others follow as they were recorded.
_ORDER = tuple(METHODS)

#: Methods of recurrent networks that take the place, and the colour, of another: no table has both.
_TWINS = {"bptt": "backprop", "dni_aux": "cdni", "dni_ls": "local_loss", "dni_ls_aux": "sobolev"}

#: Settings of a cell that methods of one table may differ in: they belong to the method.
OF_METHOD = ("update_prob", "engine", "at", "modules")

#: Networks with a state, and the methods that only these have.
_RECURRENT_ARCHS = ("lstm", "gru", "rnn", "clocked")
_RECURRENT_METHODS = ("bptt", "dni_aux", "dni_ls", "dni_ls_aux")

#: Further settings of what is between unrolls, what is usual, and the words for them.
_BOUNDARY = {
    "observe_every": (1, "M learns at 1 unroll in {:g}"),
    "rate": (0.7, "rate {:g}"),
    "damping": (0.01, "damping {:g}"),
    "max_norm": (None, "clipped to {:g}"),
}
#: What a recurrent network's cell says of its times, and how a title says it.
_LENGTHS = {"unroll": "T=", "period": "period "}


def is_bench(record: Record) -> bool:
    """Is it a line of a benchmark, or of a script that measures as one?"""
    return record.experiment.startswith("bench/") or record.experiment in ("import_time", "plan")


def is_sparse(record: Record) -> bool:
    """Is it a run of the sweep over update probabilities, whose runs of many lengths make one table?"""
    return record.experiment == "sparse" and record.cell.update_prob is not None


def is_recurrent(record: Record) -> bool:
    """Is it a run of a network with a state: one that is unrolled, or several that tick at different rates?"""
    named = record.cell.arch in _RECURRENT_ARCHS or record.method in _RECURRENT_METHODS
    return (named or record.cell.unroll is not None) and not is_bench(record)


def is_language_model(record: Record) -> bool:
    """Is it a run of a GPT on a text?"""
    return record.cell.arch == "gpt" and not is_bench(record)


def place_of(method: str) -> int | None:
    """Return the place of a method among the others, which is that of its colour; None if it is not known."""
    name = _TWINS.get(method, method)
    return _ORDER.index(name) if name in _ORDER else None


def position(method: str) -> int:
    """Return the place of a method in tables: those that are not known come last."""
    place = place_of(method)
    return len(_ORDER) if place is None else place


def row_label(record: Record, *, rate: bool = False) -> str:
    """Name of a row: the method, and what is particular about it.

    Args:
        record: one of its runs.
        rate: is the learning rate of a language model said? Rows of one table may differ in it.
    """
    if is_language_model(record):
        return short_label(record, {}, rate=rate)
    cell, rule, label = record.cell, record.config.rule, text(record.method, 40)
    parts = [f"p={cell.update_prob:g}"] if cell.update_prob not in (None, 1) else []
    parts += ["plain loop"] if cell.engine == "plain" and label != "backprop" else []
    parts += [cell.engine] if cell.engine in ("layer-parallel", "stages") else []
    parts += ["cut after " + text(cell.at, 60)] if cell.at else []
    of_a_cut = rule.like_layer is not None or cell.unroll is None  # not of what lies between two unrolls
    if of_a_cut and label != "bptt":  # which has no rule
        about = rule_words(rule)
        parts += [about] if record.experiment.endswith("_search") or about != "linear" else []
    else:
        parts += [*_boundary_words(rule), *_copying_words(record)]
    if rule.decay is not None or (record.experiment == "stale" and label == "stale"):
        parts.append(f"decay {rule.decay or 0.0:g}")  # 0, the default, is not recorded
    if rule.delay not in (None, 1 if label == "delayed" else 0):
        parts.append(f"delay {rule.delay:g}")
    parts += ["without s_B"] if rule.receiver is False else []
    parts += update_words(record)
    parts += ["true messages"] if rule.true_messages else []
    parts += [setting_words(name, rule[name]) for name in TEXTS["rule"] if name in rule]
    return f"{label} ({', '.join(parts)})" if parts else label


def windows_of(record: Record) -> float | None:
    """Return the number of windows that a language model's update is made of."""
    found = as_number(record.batch_size)
    return None if found is None else found * (record.config.number("accumulate") or 1.0)


def updates_of(record: Record) -> float | None:
    """Return the number of updates that a language model makes."""
    found = as_number(record.steps)
    return None if found is None else found // (record.config.number("accumulate") or 1.0)


def lag_of(record: Record) -> float:
    """Return the lag of a language model's messages in updates."""
    return (record.config.rule.delay or 0.0) / (record.config.number("accumulate") or 1.0)


def _language_words(record: Record) -> list[str]:
    """Return experiment, tier, text and network."""
    cell = record.cell
    size = f"{text(cell.layers, 12)} blocks × {text(cell.width, 12)}, {text(cell.get('heads'), 12)} heads"
    words = [text(record.experiment, 40), text(record.tier, 20), text(cell.data, 40), f"gpt {size}"]
    return words + (["tied"] if cell.get("tied") else [])


def _updates_words(record: Record) -> list[str]:
    """Return how many updates of what size, and how the learning rate goes."""
    cell, updates = record.cell, updates_of(record)
    count = text(record.steps, 12) if updates is None else f"{updates:,.0f}"
    tokens = text(cell.get("tokens"), 20)
    tokens = f"tokens ({tokens} {text(cell.get('vocabulary'), 12)})" if tokens == "bpe" else tokens
    size = f"{text(windows_of(record), 12)} × {text(cell.get('context'), 12)} {tokens}"
    return [f"{count} updates of {size}", *(["cosine schedule"] if record.config.get("cosine") else [])]


def _boundary_words(rule: Rule) -> list[str]:
    """Return what differs from the paper between two unrolls: there ``M`` is as wide as the network, α is 0.1."""
    words = [] if rule.hidden is None else [hidden_words(rule.hidden)]
    words += learning_words(rule)
    words += [f"α {rule.alpha:g}"] if rule.alpha not in (None, 0.1) else []
    words += [f"λ {rule.mix or 0.0:g} over {rule.window:g} unrolls"] if rule.window not in (None, 1) else []
    words += [f"aux ×{rule.aux_weight:g}"] if rule.aux_weight not in (None, 1) else []
    words += [f"aux {hidden_words(rule.aux_hidden)}"] if "aux_hidden" in rule else []
    for name, (usual, said) in _BOUNDARY.items():
        words += [said.format(value)] if (value := rule.number(name)) not in (None, usual) else []
    return words


def _copying_words(record: Record) -> list[str]:
    """Return what differs between the rows of a search, and how rows of episodes begin."""
    words = ["rows in step"] if record.config.spread == 1 else []
    search = record.experiment == "copy_search" and record.config.lr is not None
    return words + ([f"lr {record.config.lr:g}"] if search else [])


def title_of(record: Record, *, without_steps: bool = False, without_unroll: bool = False) -> str:
    """Return what is trained on what, for how long: the title of the table that a record stands in.

    Args:
        record: one of its runs.
        without_steps: of a table of several budgets: the size of the batches only.
        without_unroll: of a table of several lengths of unrolls.
    """
    config, batch = record.config, text(record.batch_size, 12)
    if is_language_model(record):
        words = [*_language_words(record), *_updates_words(record)]
        return " · ".join(words + ([text(config.precision, 12)] if config.precision else []))
    lengths = {name: sign for name, sign in _LENGTHS.items() if not (without_unroll and name == "unroll")}
    words = _recurrent_words(record, lengths) if is_recurrent(record) else _network_words(record)
    words += [f"batches of {batch}" if without_steps else f"{text(record.steps, 12)} steps of {batch}"]
    words += [text(config.precision, 12)] if config.precision else []
    words += ["compiled"] if config.compiled else []
    return " · ".join(words + (["augment"] if config.augment else []))


def _network_words(record: Record) -> list[str]:
    """Return experiment, tier, data and network."""
    cell = record.cell
    words = [text(record.experiment, 40), text(record.tier, 20), text(cell.data, 40)]
    return [*words, network_words(record)]


def network_words(record: Record, *, always: bool = False) -> str:
    """Return the network of a feed-forward run: its kind, its size, and its layers.

    Args:
        record: the run.
        always: whether layers are named too that are as in the paper.
    """
    cell = record.cell
    size = f"{text(cell.layers, 12)} layers × {text(cell.width, 12)}" if cell.layers else ""
    norm = {"layer": "LayerNorm", "none": "no norm"}.get(cell.normalisation or "", "")
    kind = [norm or "BatchNorm", text(cell.activation or "relu", 12)]
    layers = " ".join(kind) if norm or cell.activation or always else ""
    answers = {"targets": "targets sent down", "feedback": "random feedback"}.get(cell.answers or "", "")
    return ", ".join(part for part in (f"{text(cell.arch, 60)} {size}".strip(), layers, answers) if part)


def _recurrent_words(record: Record, lengths: Mapping[str, str]) -> list[str]:
    """Return experiment, tier, data, network, and how long its unrolls or its periods are."""
    cell = record.cell
    experiment, data = text(record.experiment, 40), text(cell.data, 40)
    size = f" {text(cell.layers, 12)} layer{'' if cell.layers == 1 else 's'}" if cell.layers else ""
    size += f" × {text(cell.width, 12)}" if cell.width else ""
    words = [experiment, text(record.tier, 20), *([data] if data != experiment else [])]
    words += [text(cell.arch, 60) + size]
    said = {name: as_number(cell.number(name)) for name in lengths}
    return words + [f"{lengths[name]}{value:g}" for name, value in said.items() if value is not None]

"""The names of methods and data sets, with one line about each, in the order in which tables list them.

Recipes, reports and the command line all need them. This module does not load PyTorch, because help and completion
must not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = [
    "DATA",
    "METHODS",
    "OWN_FILES",
    "RECURRENT",
    "TEXTS",
    "TEXT_PREFIX",
    "TOKENS",
    "is_own_data",
    "own_text",
]

#: Methods, the reference first.
METHODS: Mapping[str, str] = {
    "backprop": "backpropagation, everything locked: the reference",
    "no_bprop": "only the last module learns",
    "dni": "synthetic gradients from the activation alone",
    "cdni": "synthetic gradients from activation and label",
    "stale": "gradients that came back for the same example in earlier epochs",
    "local_loss": "gradients of a small classifier at every cut, nothing from above",
    "sobolev": "gradients of a model of the loss, trained on value and gradient",
    "delayed": "the true gradient, one step later for each interface that it has crossed",
    "dni_unlock": "dni with synthetic inputs too: no module waits for another",
    "cdni_unlock": "cdni with synthetic inputs too",
    "interlocked": "gradients of the small classifier at the cut above, one module later",
    "head_gradient": "local_loss, mapped to the gradients from above by least squares",
    "late_correction": "local_loss, and what it lacked when the true gradient comes late",
}

#: Methods of recurrent networks, the reference first. Two names stand for the same idea as above.
RECURRENT: Mapping[str, str] = {
    "bptt": "backpropagation through the steps of an unroll, and no further",
    "dni": "synthetic gradients at the end of every unroll",
    "dni_aux": "dni, and the network foresees the next synthetic gradient",
    "dni_ls": "dni with a linear model that is solved for by least squares, not descended to",
    "dni_ls_aux": "dni_ls, and the network foresees the next synthetic gradient",
}

#: Data sets of labelled images.
DATA: Mapping[str, str] = {
    "mnist-10k": "handwritten digits, 10,000 + 2,000, embedded",
    "mnist": "handwritten digits, 60,000 + 10,000",
    "cifar10": "small colour photographs in 10 classes, 50,000 + 10,000",
}

#: Texts, of which characters are predicted.
TEXTS: Mapping[str, str] = {
    "ptb": "Penn Treebank, newspaper text, 5.1 million characters + twice 0.4 million",
    "shakespeare": "plays of Shakespeare, 1.1 million characters",
    "shakespeare-50k": "beginning of the same, 50,000 characters, embedded",
}

#: What a language model predicts: characters, UTF-8 bytes, or byte-pair tokens that are learned from the text.
TOKENS = ("characters", "bytes", "bpe")

#: Before the path of a text: ``text:my.txt`` is the file, whatever its name.
TEXT_PREFIX = "text:"

#: Endings of files with arrays of the user's own.
OWN_FILES = (".npz", ".pt", ".safetensors")


def is_own_data(name: str) -> bool:
    """Whether a name stands for data of the user's own: a file with arrays, or ``package.module:factory``."""
    return not name.startswith(TEXT_PREFIX) and (Path(name).suffix in OWN_FILES or ":" in name)


def own_text(name: str) -> Path | None:
    """Return the file that the name of a text stands for; None for a text of `TEXTS`."""
    return None if name in TEXTS else Path(name.removeprefix(TEXT_PREFIX))

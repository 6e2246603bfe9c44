"""The names that stand in records, in the order in which tables list them, with one line each.

Here, below experiments and reports, because both need them and neither imports the other.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["METHODS", "RECURRENT"]

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
}

#: Methods of recurrent networks, the reference first. Two names stand for the same idea as above.
RECURRENT: Mapping[str, str] = {
    "bptt": "backpropagation through the steps of an unroll, and no further",
    "dni": "synthetic gradients at the end of every unroll",
    "dni_aux": "dni, and the network foresees the next synthetic gradient",
    "dni_ls": "dni with a linear model that is solved for by least squares, not descended to",
    "dni_ls_aux": "dni_ls, and the network foresees the next synthetic gradient",
}

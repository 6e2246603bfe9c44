"""Which settings make rules learn a convolutional network within a few hundred steps: what was tried.

Measured on 5,000 held-out training examples: the settings of `methods.METHODS` for convolutional networks were
selected here, and the test set had no part in it.
"""

from __future__ import annotations

from .config import Cell, RuleSettings, Schedule
from .search import Place, Search

__all__ = ["SEARCH", "TIERS", "VARIANTS", "configs"]

#: One thing varied at a time, around the linear ``M`` or head of equal learning rate; then what looked best.
VARIANTS: tuple[tuple[str, RuleSettings], ...] = (
    ("backprop", RuleSettings()),
    ("local_loss", RuleSettings()),
    ("local_loss", RuleSettings(pool=4)),
    ("local_loss", RuleSettings(head="convolutional")),
    ("local_loss", RuleSettings(head="convolutional", pool=4)),
    ("cdni", RuleSettings()),
    ("cdni", RuleSettings(lr_factor=10.0)),
    ("cdni", RuleSettings(kernel=3)),
    ("cdni", RuleSettings(hidden=(32,), kernel=3)),
    ("cdni", RuleSettings(hidden=(32,), kernel=3, lr_factor=3.0)),
    ("cdni", RuleSettings(hidden=(32,), kernel=3, lr_factor=10.0)),
    ("sobolev", RuleSettings()),
    ("sobolev", RuleSettings(pool=4)),
    ("sobolev", RuleSettings(pool=4, lr_factor=3.0)),
    ("sobolev", RuleSettings(pool=4, lr_factor=10.0)),
    ("sobolev", RuleSettings(pool=4, critic="value")),
    ("sobolev", RuleSettings(pool=4, head="convolutional")),
    ("dni", RuleSettings()),
    ("dni", RuleSettings(lr_factor=10.0)),
    ("dni", RuleSettings(hidden=(32,), kernel=3)),
    ("dni", RuleSettings(hidden=(32,), kernel=3, lr_factor=10.0)),
    ("cdni", RuleSettings(kernel=3, maps=True)),
    ("cdni", RuleSettings(kernel=3, maps=True, lr_factor=3.0)),
    ("cdni", RuleSettings(kernel=3, maps=True, lr_factor=10.0)),
    ("cdni", RuleSettings(kernel=1, maps=True)),
    ("cdni", RuleSettings(kernel=1, maps=True, lr_factor=0.3)),
    ("cdni", RuleSettings(kernel=1)),
    ("cdni", RuleSettings(hidden=(32,), kernel=3, maps=True)),
    ("sobolev", RuleSettings(head="convolutional")),
    ("sobolev", RuleSettings(pool=4, head="convolutional", lr_factor=10.0)),
    ("dni", RuleSettings(kernel=3)),
)

SEARCH = Search(
    "cnn_search",
    VARIANTS,
    {
        "smoke": Place(
            Cell("mnist-10k", "cnn", 3, 4),
            Schedule(steps=30, batch_size=64, lr=3e-3, eval_every=15),
            2000,
            "bfloat16",
        ),
        "quick": Place(
            Cell("cifar10", "cnn", 3, 32),
            Schedule(700, batch_size=128, lr=1e-3, eval_every=350),
            5000,
            "bfloat16",
        ),
    },
)
TIERS = tuple(SEARCH.places)
configs = SEARCH.configs

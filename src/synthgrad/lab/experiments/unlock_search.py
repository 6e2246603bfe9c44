"""Which input model makes complete unlock learn within a few thousand steps: the record of what was tried.

Measured on 5,000 held-out training examples: the settings of `methods.METHODS` were selected here, and the
test set had no part in it.
"""

from __future__ import annotations

from .config import Cell, RuleSettings, Schedule
from .search import Place, Search

__all__ = ["SEARCH", "TIERS", "VARIANTS", "configs"]

#: One thing varied at a time, around the first setting that was tried; then what looked best.
VARIANTS: tuple[tuple[str, RuleSettings], ...] = (
    ("cdni_unlock", RuleSettings()),
    ("cdni_unlock", RuleSettings(lr_factor=3.0)),
    ("cdni_unlock", RuleSettings(lr_factor=10.0)),
    ("cdni_unlock", RuleSettings(input_hidden=())),
    ("dni_unlock", RuleSettings(hidden=(2048,), lr_factor=10.0)),
    ("dni_unlock", RuleSettings(hidden=(2048,), lr_factor=30.0, input_lr_factor=3.0)),
    ("dni_unlock", RuleSettings(hidden=(2048,), lr_factor=10.0, input_lr_factor=3.0)),
    ("dni_unlock", RuleSettings(hidden=(2048,), lr_factor=10.0, input_lr_factor=3.0, input_hidden=(1024,))),
    ("dni_unlock", RuleSettings(hidden=(1024,), lr_factor=3.0)),
)

SEARCH = Search(
    "unlock_search",
    VARIANTS,
    {
        "smoke": Place(Cell("mnist-10k"), Schedule(steps=60, batch_size=64, eval_every=30), 2000, "bfloat16"),
        "quick": Place(Cell("mnist"), Schedule(steps=6000, eval_every=1000), 5000, "bfloat16"),
    },
)
TIERS = tuple(SEARCH.places)
configs = SEARCH.configs

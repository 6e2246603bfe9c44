"""Rules: what credit the module below an interface gets. One file each."""

from . import heads, models
from .local_loss import LocalLoss
from .no_backprop import NoBackprop
from .oracle import Oracle, Recording, record_messages
from .sobolev import Sobolev
from .stale import StaleGradient
from .synthetic_gradient import SyntheticGradient

__all__ = [
    "LocalLoss",
    "NoBackprop",
    "Oracle",
    "Recording",
    "Sobolev",
    "StaleGradient",
    "SyntheticGradient",
    "heads",
    "models",
    "record_messages",
]

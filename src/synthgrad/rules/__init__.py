"""Rules: what credit the module below an interface gets. One file each."""

from . import models
from .no_backprop import NoBackprop
from .oracle import Oracle, Recording, record_messages
from .synthetic_gradient import SyntheticGradient

__all__ = ["NoBackprop", "Oracle", "Recording", "SyntheticGradient", "models", "record_messages"]

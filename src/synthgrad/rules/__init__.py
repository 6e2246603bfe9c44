"""Rules: what credit the module below an interface gets. One file each."""

from . import heads, models
from .difference_target import DifferenceTarget
from .future_gradient import FutureGradient
from .hand_over import HandOver
from .head_gradient import HeadGradient
from .interlocked import InterlockedLoss
from .late_correction import LateCorrection
from .least_squares import LeastSquaresGradient
from .local_loss import LocalLoss
from .no_backprop import NoBackprop
from .oracle import Oracle, Recording, record_messages
from .sobolev import Sobolev
from .stale import StaleGradient
from .synthetic_gradient import SyntheticGradient
from .synthetic_input import SyntheticInput, convolutional_input, dense_input
from .true_gradient import TrueGradient

__all__ = [
    "DifferenceTarget",
    "FutureGradient",
    "HandOver",
    "HeadGradient",
    "InterlockedLoss",
    "LateCorrection",
    "LeastSquaresGradient",
    "LocalLoss",
    "NoBackprop",
    "Oracle",
    "Recording",
    "Sobolev",
    "StaleGradient",
    "SyntheticGradient",
    "SyntheticInput",
    "TrueGradient",
    "convolutional_input",
    "dense_input",
    "heads",
    "models",
    "record_messages",
]

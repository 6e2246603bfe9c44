"""Synthetic gradient models: what ``M(h, c)`` is made of.

All take ``(h, c)``, some the state of the receiving module as well, and return a tensor of the shape of ``h``;
the last layer starts at zero, so the first synthetic gradients are exactly zero (DNI §2). A factory builds one
for a `Site`.
"""

from .base import Activation, GradientModel, ModelFactory
from .convolutional_model import ConvolutionalModel
from .dense_model import DenseModel
from .factories import convolutional, dense, like_layer

__all__ = [
    "Activation",
    "ConvolutionalModel",
    "DenseModel",
    "GradientModel",
    "ModelFactory",
    "convolutional",
    "dense",
    "like_layer",
]

"""Synthetic gradient models: what ``M(h, c)`` is made of.

All take ``(h, c)``, some the state of the receiving module as well, and return a tensor of the shape of ``h``;
the last layer starts at zero, so the first synthetic gradients are exactly zero (DNI §2). A factory builds one
for a `Site`.
"""

from .base import Activation, GradientModel, ModelFactory
from .class_means_model import ClassMeansModel
from .convolutional_model import ConvolutionalModel
from .dense_model import DenseModel
from .factories import class_means, convolutional, dense, like_layer

__all__ = [
    "Activation",
    "ClassMeansModel",
    "ConvolutionalModel",
    "DenseModel",
    "GradientModel",
    "ModelFactory",
    "class_means",
    "convolutional",
    "dense",
    "like_layer",
]

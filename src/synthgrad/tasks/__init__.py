"""What is trained on what: data sets, reference networks. Add a data set in ``datasets.py``."""

from .augment import Augment
from .datasets import DATASETS, Dataset, load
from .images import Images, Split, draw_batches
from .networks import convolutional, cut_names, fully_connected

__all__ = [
    "DATASETS",
    "Augment",
    "Dataset",
    "Images",
    "Split",
    "convolutional",
    "cut_names",
    "draw_batches",
    "fully_connected",
    "load",
]

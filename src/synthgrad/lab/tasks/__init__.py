"""What is trained on what: data sets, reference networks. Add a data set in ``datasets.py``."""

from .augment import Augment
from .copying import IGNORED, CopyTask, Curriculum, Episode
from .counting import Block, Counting, FastCounter, SlowCounter, counting_networks, report_accuracy
from .datasets import DATASETS, TEXTS, Dataset, load, load_text
from .episodes import EpisodeStream, Part
from .images import Images, Split, draw_batches
from .metrics import bits, bits_per_char
from .networks import convolutional, cut_names, fully_connected
from .recurrent import RecurrentNetwork, State, recurrent_network
from .stream import Stream, Unroll
from .text import Text
from .transformer import MemoryTransformer

__all__ = [
    "DATASETS",
    "IGNORED",
    "TEXTS",
    "Augment",
    "Block",
    "CopyTask",
    "Counting",
    "Curriculum",
    "Dataset",
    "Episode",
    "EpisodeStream",
    "FastCounter",
    "Images",
    "MemoryTransformer",
    "Part",
    "RecurrentNetwork",
    "SlowCounter",
    "Split",
    "State",
    "Stream",
    "Text",
    "Unroll",
    "bits",
    "bits_per_char",
    "convolutional",
    "counting_networks",
    "cut_names",
    "draw_batches",
    "fully_connected",
    "load",
    "load_text",
    "recurrent_network",
    "report_accuracy",
]

"""Data sets, sequence tasks, reference networks and metrics. Add a data set in ``datasets.py``."""

from .augment import Augment
from .copying import IGNORED, CopyEpisodes, Curriculum, EpisodeBatch
from .counting import DigitBlock, DigitStream, FastCounter, SlowCounter, counting_networks, report_accuracy
from .datasets import DATASETS, TEXTS, NamedDataset, load, load_text, load_tokens
from .episodes import EpisodeStream, EpisodeUnroll
from .images import LabelledData, Split, draw_batches
from .metrics import TokenLoss, bits, bits_per_char, token_loss, token_loss_of
from .networks import convolutional, cut_names, fully_connected
from .recurrent import RecurrentNetwork, RecurrentState, recurrent_network
from .stream import TextStream, TokenWindows, Unroll
from .text import Text
from .tokens import TOKENS, Tokenizer, TokenText

__all__ = [
    "DATASETS",
    "IGNORED",
    "TEXTS",
    "TOKENS",
    "Augment",
    "CopyEpisodes",
    "Curriculum",
    "DigitBlock",
    "DigitStream",
    "EpisodeBatch",
    "EpisodeStream",
    "EpisodeUnroll",
    "FastCounter",
    "LabelledData",
    "NamedDataset",
    "RecurrentNetwork",
    "RecurrentState",
    "SlowCounter",
    "Split",
    "Text",
    "TextStream",
    "TokenLoss",
    "TokenText",
    "TokenWindows",
    "Tokenizer",
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
    "load_tokens",
    "recurrent_network",
    "report_accuracy",
    "token_loss",
    "token_loss_of",
]

"""Data sets and texts by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from ...core import ConfigError
from ..names import DATA, is_own_data
from ..names import TEXTS as ABOUT_TEXTS
from .cifar import load_cifar10
from .images import LabelledData
from .mnist import load_mnist, load_mnist_10k
from .own_data import load_own
from .text import Source, Text, read_file, read_ptb, read_shakespeare, read_shakespeare_50k, to_text
from .tokens import TokenText, tokenize

__all__ = ["DATASETS", "TEXTS", "NamedDataset", "load", "load_text", "load_tokens"]

DataT = TypeVar("DataT")

#: Says that what follows is the path of a text.
_PATH = "text:"


@dataclass(frozen=True, slots=True)
class NamedDataset(Generic[DataT]):
    """A data set that can be loaded by its name.

    Attributes:
        name: name on the command line.
        about: description in one line.
        read: function that takes the data directory, or None, and returns the data.
    """

    name: str
    about: str
    read: Callable[[Path | None], DataT]


def _named(
    about: Mapping[str, str], readers: Mapping[str, Callable[[Path | None], DataT]]
) -> dict[str, NamedDataset[DataT]]:
    """Return the data sets by name, in the order of their descriptions."""
    return {name: NamedDataset(name, words, readers[name]) for name, words in about.items()}


#: Labelled images.
DATASETS: dict[str, NamedDataset[LabelledData]] = _named(
    DATA,
    {"mnist-10k": lambda _: load_mnist_10k(), "mnist": load_mnist, "cifar10": load_cifar10},
)

_SOURCES: Mapping[str, Callable[[Path | None], Source]] = {
    "ptb": read_ptb,
    "shakespeare": read_shakespeare,
    "shakespeare-50k": lambda _: read_shakespeare_50k(),
}


def _characters_of(read: Callable[[Path | None], Source], data_dir: Path | None) -> Text:
    return to_text(read(data_dir))


#: Texts, of which characters or other tokens are predicted.
TEXTS: dict[str, NamedDataset[Text]] = _named(
    ABOUT_TEXTS, {name: partial(_characters_of, read) for name, read in _SOURCES.items()}
)


def load(name: str, data_dir: Path | None = None) -> LabelledData:
    """Load a data set by name, or the user's own data, onto the CPU.

    Args:
        name: a name that ``synthgrad list`` shows, or a file or factory as in `load_own`.
        data_dir: directory of data files, or None.

    Raises:
        ConfigError: if the name is unknown, or a factory returns something else than data.
        DataError: if files are damaged or missing, or their arrays do not fit.
    """
    if is_own_data(name):
        return load_own(name)
    if name not in DATASETS:
        raise ConfigError(
            f"data set '{name}' is unknown; accepted: {', '.join(DATASETS)}, a file .npz, .pt or .safetensors, or "
            "package.module:factory"
        )
    return DATASETS[name].read(data_dir)


def load_text(name: str | Path, data_dir: Path | None = None) -> Text:
    """Load the characters of a text onto the CPU: one of `TEXTS` by name, or a UTF-8 file by its path.

    Names take precedence: write ``./ptb`` or ``text:ptb`` for a file that is called ``ptb``.

    Raises:
        ConfigError: if there is neither a text nor a file of that name.
        DataError: if files are damaged or missing.
    """
    return to_text(_read_source(name, data_dir))


def load_tokens(
    name: str | Path, data_dir: Path | None = None, tokens: str = "characters", vocabulary: int | None = None
) -> TokenText:
    """Load the tokens of a text onto the CPU.

    Args:
        name: as for `load_text`.
        data_dir: directory of data files, or None.
        tokens: ``characters`` as in `load_text`, ``bytes`` of UTF-8, or ``bpe``: byte-level byte-pair encoding, trained
            on the training part; it needs the package ``tokenizers``.
        vocabulary: number of tokens, at least 256; for ``bpe`` only.

    Raises:
        ConfigError: if there is neither a text nor a file of that name, the tokens are unknown, or the vocabulary is
            missing, too small, or not for these tokens.
        DataError: if files are damaged or missing, or the text is too short for the vocabulary.
    """
    return tokenize(_read_source(name, data_dir), tokens, vocabulary)


def _read_source(name: str | Path, data_dir: Path | None) -> Source:
    if isinstance(name, str) and name in _SOURCES:
        return _SOURCES[name](data_dir)
    path = Path(name.removeprefix(_PATH) if isinstance(name, str) else name)
    if not path.exists():
        raise ConfigError(
            f"text '{name}' is neither a known text nor a file; accepted: {', '.join(TEXTS)}, or the path of a UTF-8 file"
        )
    return read_file(path)

"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ...core import ConfigError
from .cifar import load_cifar10
from .images import Images
from .mnist import load_mnist, load_mnist_10k
from .text import Text, load_ptb, load_shakespeare, load_shakespeare_50k, read_text

__all__ = ["DATASETS", "TEXTS", "Dataset", "load", "load_text"]

DataT = TypeVar("DataT")


@dataclass(frozen=True, slots=True)
class Dataset(Generic[DataT]):
    """An entry of the list of data sets.

    Attributes:
        name: as given on the command line.
        about: one line.
        read: takes the data directory, returns the data.
    """

    name: str
    about: str
    read: Callable[[Path | None], DataT]


#: Labelled images.
DATASETS: dict[str, Dataset[Images]] = {
    d.name: d
    for d in (
        Dataset("mnist-10k", "handwritten digits, 10,000 + 2,000, embedded", lambda _: load_mnist_10k()),
        Dataset("mnist", "handwritten digits, 60,000 + 10,000", load_mnist),
        Dataset("cifar10", "small colour photographs in 10 classes, 50,000 + 10,000", load_cifar10),
    )
}

#: Texts, of which characters are predicted.
TEXTS: dict[str, Dataset[Text]] = {
    d.name: d
    for d in (
        Dataset("ptb", "Penn Treebank, newspaper text, 5.1 million characters + twice 0.4 million", load_ptb),
        Dataset("shakespeare", "plays of Shakespeare, 1.1 million characters", load_shakespeare),
        Dataset(
            "shakespeare-50k",
            "beginning of the same, 50,000 characters, embedded",
            lambda _: load_shakespeare_50k(),
        ),
    )
}


def load(name: str, data_dir: Path | None = None) -> Images:
    """Return a data set by name, on the CPU.

    Raises:
        ConfigError: if there is none of that name.
        DataError: if its files are damaged or missing.
    """
    if name not in DATASETS:
        raise ConfigError(f"data set '{name}' is unknown; accepted: {', '.join(DATASETS)}")
    return DATASETS[name].read(data_dir)


def load_text(name: str | Path, data_dir: Path | None = None) -> Text:
    """Return a text, on the CPU: one of `TEXTS` by name, or a file in UTF-8 by its path.

    A name comes first; write ``./ptb`` for a file of that name.

    Raises:
        ConfigError: if it is neither.
        DataError: if files are damaged or missing.
    """
    if isinstance(name, str) and name in TEXTS:
        return TEXTS[name].read(data_dir)
    path = Path(name)
    if not path.exists():
        raise ConfigError(
            f"text '{name}' is unknown and no file; accepted: {', '.join(TEXTS)}, or the path of a file in UTF-8"
        )
    return read_text(path)

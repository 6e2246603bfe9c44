"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..core import ConfigError
from .cifar import load_cifar10
from .images import Images
from .mnist import load_mnist, load_mnist_10k

__all__ = ["DATASETS", "Dataset", "load"]


@dataclass(frozen=True, slots=True)
class Dataset:
    """An entry of the list of data sets.

    Attributes:
        name: as given on the command line.
        about: one line.
        read: takes the data directory, returns the data.
    """

    name: str
    about: str
    read: Callable[[Path | None], Images]


DATASETS = {
    d.name: d
    for d in (
        Dataset("mnist-10k", "handwritten digits, 10,000 + 2,000, embedded", lambda _: load_mnist_10k()),
        Dataset("mnist", "handwritten digits, 60,000 + 10,000", load_mnist),
        Dataset("cifar10", "small colour photographs in 10 classes, 50,000 + 10,000", load_cifar10),
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

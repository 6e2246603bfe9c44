"""The network of a cell: a reference network by name, or the user's own from its factory."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from torch import Tensor, nn

from ...core import ConfigError, propose_cuts
from ..tasks import Images, convolutional, cut_names, fully_connected
from .config import Cell

__all__ = ["build_model", "cuts_of", "user_model"]


def build_model(cell: Cell, data: Images) -> nn.Module:
    """Return the network of a cell for a data set, with fresh weights.

    Raises:
        ConfigError: if the cell's network cannot be built; says why.
    """
    if ":" in cell.arch:
        return user_model(cell.arch)
    assert cell.layers is not None
    assert cell.width is not None
    make = convolutional if cell.arch == "cnn" else fully_connected
    return make(data.train.x.shape[1:], data.classes, cell.layers, cell.width)


def cuts_of(cell: Cell, model: nn.Module, example: Tensor) -> list[str]:
    """Return the cuts of a cell: those named, else the reference network's own, else proposed ones.

    Raises:
        CutError: if none can be proposed.
    """
    if cell.at:
        return list(cell.at)
    if ":" in cell.arch:
        names = propose_cuts(model, example)
    else:
        assert isinstance(model, nn.Sequential)
        names = cut_names(model)
    # Two stages of about the same size, where nobody says otherwise.
    return [names[(len(names) - 1) // 2]] if cell.engine == "stages" else names


def user_model(path: str) -> nn.Module:
    """Call a factory ``package.module:factory`` without arguments and return the network it makes.

    Raises:
        ConfigError: if it does not exist, raises, or makes something else; names it and its error.
    """
    module_name, _, name = path.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)  # a module beside the user, as `python -m` would find it
    try:
        factory = getattr(importlib.import_module(module_name), name)
        model = factory()
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"--model {path}: {type(error).__name__}: {error}; expected an importable factory that takes no "
            "arguments and returns a torch.nn.Module"
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"--model {path}: returned a {type(model).__name__}, expected a torch.nn.Module")
    return model

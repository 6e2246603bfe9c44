"""The network of a run: a reference network by name, or the user's own from its factory."""

from __future__ import annotations

from torch import Tensor, nn

from ...core import ConfigError, propose_cuts
from ..tasks import LabelledData, convolutional, cut_names, fully_connected
from ..tasks.own_data import import_attribute
from .payloads import FeedForward

__all__ = ["build_model", "cuts_of", "user_model"]


def build_model(payload: FeedForward, data: LabelledData) -> nn.Module:
    """Return the network of a payload for a data set, with fresh weights.

    Raises:
        ConfigError: if the network cannot be built; says why.
    """
    if ":" in payload.arch:
        return user_model(payload.arch)
    assert payload.layers is not None
    assert payload.width is not None
    make = convolutional if payload.arch == "cnn" else fully_connected
    return make(data.train.x.shape[1:], data.classes, payload.layers, payload.width)


def cuts_of(payload: FeedForward, model: nn.Module, example: Tensor) -> list[str]:
    """Return the cuts of a payload: those named, else the reference network's own, else proposed ones.

    Raises:
        CutError: if none can be proposed.
    """
    if payload.at:
        return list(payload.at)
    if ":" in payload.arch:
        names = propose_cuts(model, example)
    else:
        assert isinstance(model, nn.Sequential)
        names = cut_names(model)
    # Two stages of about the same size, where nobody says otherwise.
    return [names[(len(names) - 1) // 2]] if payload.engine == "stages" else names


def user_model(path: str) -> nn.Module:
    """Call a factory ``package.module:factory`` without arguments and return the network it makes.

    Raises:
        ConfigError: if it does not exist, raises, or makes something else; names it and its error.
    """
    try:
        model = import_attribute(path)()
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"--model {path}: {type(error).__name__}: {error}; expected an importable factory that takes no "
            "arguments and returns a torch.nn.Module"
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"--model {path}: returned a {type(model).__name__}, expected a torch.nn.Module")
    return model

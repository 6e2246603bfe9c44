"""Builds the network of a feed-forward run: a reference network, or the user's own from a factory."""

from __future__ import annotations

from torch import Tensor, nn

from ...core import ConfigError, propose_cuts
from ...rules import DifferenceTarget
from ..tasks import LabelledData, convolutional, cut_names, fully_connected
from ..tasks.networks import ACTIVATION_MODULES
from ..tasks.own_data import import_attribute
from .payloads import FeedForward

__all__ = ["build_model", "cuts_of", "user_model"]


def build_model(payload: FeedForward, data: LabelledData) -> nn.Module:
    """Build the network of a payload for a data set, with initial weights.

    Raises:
        ConfigError: if the network cannot be built.
    """
    if ":" in payload.arch:
        return user_model(payload.arch)
    assert payload.layers is not None
    assert payload.width is not None
    sizes = data.train.x.shape[1:], data.classes, payload.layers, payload.width
    if payload.arch == "cnn":
        return convolutional(*sizes)
    model = fully_connected(*sizes, norm=payload.normalisation, activation=payload.activation)
    if payload.answers != "gradients":
        _answer_with_targets(model, payload.width, payload.activation, learns=payload.answers == "targets")
    return model


def _answer_with_targets(model: nn.Sequential, width: int, activation: str, *, learns: bool) -> None:
    """Put every hidden layer but the first into a `DifferenceTarget`; the layers have the weights that they would have."""
    for name in [name for name, _ in model.named_children()][1:-1]:
        inverse = nn.Sequential(nn.Linear(width, width), ACTIVATION_MODULES[activation]())
        model.set_submodule(name, DifferenceTarget(model.get_submodule(name), inverse, learns=learns))


def cuts_of(payload: FeedForward, model: nn.Module, example: Tensor) -> list[str]:
    """Return the cuts of a payload: the named ones, or else those of the reference network or proposed ones.

    Args:
        payload: the payload.
        model: its network, on the device.
        example: a batch of inputs, on the device.

    Raises:
        CutError: if no cut can be proposed for the user's network.
    """
    if payload.at:
        return list(payload.at)
    if ":" in payload.arch:
        names = propose_cuts(model, example)
    else:
        assert isinstance(model, nn.Sequential)
        names = cut_names(model)
    # By default, two stages with about the same number of layers.
    return [names[(len(names) - 1) // 2]] if payload.engine == "stages" else names


def user_model(path: str) -> nn.Module:
    """Import and call a factory ``package.module:factory``, and return the network that it makes.

    Raises:
        ConfigError: if the factory does not exist, raises an error, or returns something else.
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

"""The synthetic input: a model of the activation, from the network's input alone (DNI §2, complete unlock)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn

from ..core import ConfigError, ContextError, CutError, Info, InputRule, Site, Supply

__all__ = ["InputModelFactory", "SyntheticInput", "convolutional_input", "dense_input"]

#: Takes the site and returns a module from the network's input ``(B, ...)`` to ``ĥ``.
InputModelFactory = Callable[[Site], nn.Module]


class SyntheticInput(InputRule):
    """``ĥ = I(x)``; ``I`` learns on ``mean over examples of ‖I(x) − h‖²``, sum over features (DNI §2).

    ``x`` is the network's input: no activation and no label enters, so the module above need not wait for
    anything. Only the real activation teaches ``I``, not the loss of the module that it feeds. In ``eval()``
    the real composition of the modules is used.

    Args:
        hidden: widths (channels, for activations ``(B, C, Y, X)``) of the hidden layers of ``I``.
        model: factory of another ``I``; ``hidden`` is then not given.
        norm: BatchNorm in the hidden layers.

    Raises:
        ConfigError: if an argument is out of its range.
    """

    def __init__(
        self, hidden: Sequence[int] = (256,), *, model: InputModelFactory | None = None, norm: bool = True
    ) -> None:
        super().__init__()
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in hidden):
            raise ConfigError(f"hidden={tuple(hidden)!r}: expected widths of at least 1, or () for linear")
        self.hidden = tuple(hidden)
        self.norm = norm
        self._factory = model
        self.model: nn.Module

    def extra_repr(self) -> str:
        if self._factory is not None:
            return "I of a factory"
        return "I with hidden " + " × ".join(map(str, self.hidden)) if self.hidden else "linear I"

    def build(self, site: Site) -> None:
        if self._factory is not None:
            self.model = self._factory(site)
            return
        images = len(site.shape) == 4 and site.inputs is not None and len(site.inputs) == 4
        make = convolutional_input if images else dense_input
        self.model = make(self.hidden, norm=self.norm)(site)

    def check(self, x: Tensor | None, info: Info) -> None:
        if x is None:
            raise ContextError(
                f"interface '{self.name}': synthetic inputs are made from the network's first argument, which "
                "is no tensor; give the step a tensor, or a tuple that begins with one"
            )

    def predict(self, x: Tensor) -> Tensor:
        """Return ``I(x)``, attached to the model's parameters."""
        with torch.enable_grad():  # the module above may be one that drew no update
            return self.model(x.detach())

    def supply(self, x: Tensor, info: Info) -> Supply:
        prediction = self.predict(x)
        return Supply(prediction.detach(), (prediction,))

    def observe(self, x: Tensor, info: Info, h: Tensor, pending: tuple[Tensor, ...] = ()) -> Tensor:
        prediction = pending[0] if pending else self.predict(x)
        with torch.enable_grad():
            return (prediction - h).square().sum() / max(h.shape[0], 1)


def _input_shape(site: Site) -> tuple[int, ...]:
    if site.inputs is None or len(site.inputs) < 2:
        raise CutError(
            f"interface '{site.name}': synthetic inputs are made from the network's first argument, which in the "
            f"example is {'no tensor' if site.inputs is None else f'of shape {site.inputs}'}; expected (B, features…)"
        )
    if len(site.shape) < 2:
        raise CutError(f"interface '{site.name}': an activation of shape {site.shape} has no features")
    return site.inputs[1:]


def dense_input(hidden: Sequence[int] = (), *, norm: bool = True) -> InputModelFactory:
    """Return a factory of fully connected models, each hidden layer Linear–(BatchNorm)–ReLU."""

    def build(site: Site) -> nn.Module:
        sizes = [prod(_input_shape(site)), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for a, b in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(a, b, bias=not norm), *([nn.BatchNorm1d(b)] if norm else []), nn.ReLU()]
        shape = site.shape[1:]
        layers += [nn.Linear(sizes[-1], prod(shape))]
        layers += [nn.Unflatten(1, shape)] if len(shape) > 1 else []
        return nn.Sequential(*layers)

    return build


def convolutional_input(
    hidden: Sequence[int] = (), *, kernel: int = 5, norm: bool = True
) -> InputModelFactory:
    """Return a factory of convolutional models: hidden layers at the input's resolution, averaged to that of ``h``.

    Args:
        hidden: channels of the hidden layers, each Conv–(BatchNorm)–ReLU.
        kernel: odd size of the kernels.
        norm: BatchNorm in the hidden layers.
    """

    def build(site: Site) -> nn.Module:
        inputs = _input_shape(site)
        if len(inputs) != 3 or len(site.shape) != 4:
            raise CutError(
                f"interface '{site.name}': a convolutional input model goes from (B, C, Y, X) to (B, C, Y, X), the "
                f"example has {site.inputs} and {site.shape}; use dense_input"
            )
        sizes, layers = [inputs[0], *hidden], list[nn.Module]()
        for a, b in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=not norm)]
            layers += [*([nn.BatchNorm2d(b)] if norm else []), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(site.shape[2:])]
        return nn.Sequential(*layers, nn.Conv2d(sizes[-1], site.shape[1], kernel, padding=kernel // 2))

    return build

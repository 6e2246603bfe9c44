"""The synthetic input: a model of the activation, from the network's input alone (DNI §2, complete unlock)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from ..core import ContextError, CutError, Info, InputRule, ShapeError, Site, Supply
from ..core.given import check_factory, widths_of
from .spatial import average, check_norm, convolution, kernel_of, norm_of, num_space_dims

__all__ = ["InputModelFactory", "SyntheticInput", "convolutional_input", "dense_input"]

#: Takes the site and returns a module from the network's input ``(B, ...)`` to ``ĥ``.
InputModelFactory = Callable[[Site], nn.Module]


class SyntheticInput(InputRule):
    """``ĥ = I(x)``; ``I`` learns on ``mean over examples of ‖I(x) − h‖²``, sum over features (DNI §2).

    ``x`` is the network's input: no activation and no label enters, so the module above need not wait for
    anything. Only the real activation teaches ``I``, not the loss of the module that it feeds. In ``eval()``
    the real composition of the modules is used.

    Args:
        hidden: widths (channels, where ``I`` is convolutional: between an input ``(B, C, L)``, ``(B, C, Y, X)`` or
            ``(B, C, Z, Y, X)`` and an activation with as many dimensions) of the hidden layers of ``I``.
        model: factory of another ``I``; ``hidden`` is then not given.
        norm: BatchNorm in the hidden layers.

    Raises:
        ConfigError: if an argument is out of its range.
    """

    def __init__(
        self, hidden: Sequence[int] = (256,), *, model: InputModelFactory | None = None, norm: bool = True
    ) -> None:
        super().__init__()
        check_factory("model", model, "model=synthgrad.rules.dense_input()")
        self.hidden = widths_of(hidden)
        self.norm = norm
        self._factory = model
        self._inputs: tuple[int, ...] | None = None  # shape of the network's input; None where any may do
        self._by_place = False
        self.model: nn.Module

    def extra_repr(self) -> str:
        if self._factory is not None:
            return "I of a factory"
        return "I with hidden " + " × ".join(map(str, self.hidden)) if self.hidden else "linear I"

    def build(self, site: Site) -> None:
        factory = self._factory
        if factory is None:
            dims = num_space_dims(site) if len(site.shape) > 1 else 0
            alike = site.inputs is not None and len(site.inputs) == len(site.shape)
            make = convolutional_input if dims and alike else dense_input
            factory = make(self.hidden, norm=self.norm)
        self.model = factory(site)
        self._inputs = site.inputs if isinstance(factory, _Dense | _Convolutional) else None
        self._by_place = isinstance(factory, _Convolutional)

    def check(self, x: Tensor | None, info: Info) -> None:
        if x is None:
            raise ContextError(
                f"interface '{self.name}': synthetic inputs are made from the network's first argument, which "
                "is no tensor; give the step a tensor, or a tuple that begins with one"
            )
        if self._inputs is None:
            return
        if x.shape[1:] != self._inputs[1:]:
            raise ShapeError(
                f"interface '{self.name}': got an input of shape {tuple(x.shape)} to make a synthetic one from, expected "
                f"(B, {', '.join(map(str, self._inputs[1:]))}) as in the example that decouple was given"
            )
        check_norm(self.model, x[:, :1].numel() if self._by_place else x.shape[0], x, self.name)

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


@dataclass(frozen=True)
class _Dense:
    hidden: tuple[int, ...] = ()
    norm: bool = True

    def __call__(self, site: Site) -> nn.Module:
        sizes = [prod(_input_shape(site)), *self.hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for a, b in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(a, b, bias=not self.norm)]
            layers += [*([nn.BatchNorm1d(b)] if self.norm else []), nn.ReLU()]
        shape = site.shape[1:]
        layers += [nn.Linear(sizes[-1], prod(shape))]
        layers += [nn.Unflatten(1, shape)] if len(shape) > 1 else []
        return nn.Sequential(*layers)


@dataclass(frozen=True)
class _Convolutional:
    hidden: tuple[int, ...] = ()
    kernel: int | None = None
    norm: bool = True

    def __call__(self, site: Site) -> nn.Module:
        inputs = _input_shape(site)
        dims = len(inputs) - 1
        if dims not in (1, 2, 3) or len(site.shape) != len(inputs) + 1:
            raise CutError(
                f"interface '{site.name}': a convolutional input model goes from (B, C, L), (B, C, Y, X) or "
                f"(B, C, Z, Y, X) to an activation with as many dimensions, the example has {site.inputs} and "
                f"{site.shape}; use dense_input"
            )
        at, kernel = site.features_at, kernel_of(self.kernel, dims)
        sizes, layers = [inputs[0], *self.hidden], list[nn.Module]()
        for a, b in zip(sizes, sizes[1:], strict=False):
            layers += [convolution(dims, a, b, kernel, bias=not self.norm)]
            layers += [*([norm_of(dims, b)] if self.norm else []), nn.ReLU()]
        layers += [average(dims, [n for k, n in enumerate(site.shape) if k not in (0, at)])]
        layers += [convolution(dims, sizes[-1], site.shape[at], kernel)]
        return nn.Sequential(*layers, *([] if at == 1 else [_FeaturesTo(at)]))


class _FeaturesTo(nn.Module):
    """Moves dimension 1 to where the network has its features."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def forward(self, h: Tensor) -> Tensor:
        return h.movedim(1, self.at)


def dense_input(hidden: Sequence[int] = (), *, norm: bool = True) -> InputModelFactory:
    """Return a factory of fully connected models, each hidden layer Linear–(BatchNorm)–ReLU."""
    return _Dense(widths_of(hidden), norm)


def convolutional_input(
    hidden: Sequence[int] = (), *, kernel: int | None = None, norm: bool = True
) -> InputModelFactory:
    """Return a factory of convolutional models: hidden layers at the input's resolution, averaged to that of ``h``.

    The network's input has its channels in dimension 1; ``h`` may have them elsewhere.

    Args:
        hidden: channels of the hidden layers, each Conv–(BatchNorm)–ReLU.
        kernel: odd size of the kernels; None for 5, and 3 in volumes.
        norm: BatchNorm in the hidden layers.

    Raises:
        ConfigError: if the kernel is not odd.
    """
    kernel_of(kernel, 2)
    return _Convolutional(widths_of(hidden), kernel, norm)

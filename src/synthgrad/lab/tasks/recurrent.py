"""Recurrent reference networks: fused LSTM, GRU and plain cells, with their state in the open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ...core import ConfigError, ShapeError

__all__ = [
    "CellKind",
    "RecurrentNetwork",
    "RecurrentState",
    "check_sizes",
    "check_state",
    "encode",
    "recurrent_network",
]

CellKind = Literal["lstm", "gru", "rnn"]

#: What a network carries from one unroll to the next: tensors whose first dimension is the batch.
RecurrentState = tuple[Tensor, ...]

_CORES: dict[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class RecurrentNetwork(nn.Module):
    """A recurrent core over the steps of an unroll, and a linear output at every step.

    The state goes in and comes out, attached to the graph: who truncates, or injects a gradient, does it
    between two calls. All steps of an unroll are one call of a fused kernel. The kernels of CUDA have a
    backward pass in training mode only.

    Args:
        core: ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``, batch first, in one direction.
        head: linear output, from the core's width.
        embedding: turns tokens into the core's inputs; None for one-hot tokens, or features as they are.

    Attributes:
        core: as given, or any module of the same call that stands in for it.
        head: as given.
        embedding: as given.
    """

    # Measured on one CPU thread, forward and backward, LSTM and GRU of 128 to 512 units, 51 characters:
    # ``batch_first`` makes no difference. One-hot tokens take from a tenth to a half less time than an
    # embedding of the core's width, whose matrix product is the larger one; so they are what
    # `recurrent_network` makes unless told otherwise.

    def __init__(self, core: nn.RNNBase, head: nn.Linear, embedding: nn.Embedding | None = None) -> None:
        super().__init__()
        self.core = core
        self.head = head
        self.embedding = embedding
        self._inputs = core.input_size if embedding is None else embedding.num_embeddings
        self._num_parts = 2 if isinstance(core, nn.LSTM) else 1
        self._part = (core.num_layers, core.hidden_size)

    def initial_state(
        self, batch_size: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> RecurrentState:
        """Return the state at the beginning of an episode: zeros.

        Args:
            batch_size: ``B``.
            device: that of the network's weights, unless given.
            dtype: likewise.

        Returns:
            ``(h, c)`` of an LSTM, ``(h,)`` else; each ``(B, layers, H)``. Not the order of dimensions in
            ``nn.LSTM``: an interface wants the batch first.
        """
        weight = self.head.weight
        return tuple(
            torch.zeros(batch_size, *self._part, device=device or weight.device, dtype=dtype or weight.dtype)
            for _ in range(self._num_parts)
        )

    def features(self, x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Run the core over an unroll.

        Args:
            x: tokens ``(B, T)`` int64, or features ``(B, T, F)``.
            state: as `initial_state` or the unroll before left it.

        Returns:
            The last layer's output at every step, ``(B, T, H)``, and the state behind the last one.

        Raises:
            ShapeError: if input or state do not fit.
        """
        z = encode(x, self._inputs, self.embedding, self.head.weight.dtype)
        check_state(state, self._num_parts, (x.shape[0], *self._part))
        # (B, layers, H) -> (layers, B, H), contiguous as the fused kernels want it; free with one layer.
        turned = tuple(part.transpose(0, 1).contiguous() for part in state)
        outputs, after = self.core(z, turned if self._num_parts == 2 else turned[0])
        parts: RecurrentState = after if self._num_parts == 2 else (after,)
        # Under autocast some kernels return half precision; what is carried on keeps the dtype it came in.
        return outputs, tuple(part.transpose(0, 1).to(state[0].dtype) for part in parts)

    def forward(self, x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Return the outputs at every step, ``(B, T, classes)``, and the state behind the last one.

        Args and errors are those of `features`.
        """
        features, state = self.features(x, state)
        return self.head(features), state


def recurrent_network(
    kind: str, inputs: int, classes: int, width: int, layers: int = 1, embed: bool = False
) -> RecurrentNetwork:
    """Return a recurrent network with a linear output (DNI §2.2), with PyTorch's initial weights.

    Args:
        kind: ``"lstm"``, ``"gru"``, or ``"rnn"`` for plain cells with a hyperbolic tangent.
        inputs: number of tokens, or of features ``F``.
        classes: number of outputs.
        width: units ``H`` of a layer.
        layers: recurrent layers.
        embed: whether tokens are embedded, in vectors as wide as the core; else they are one-hot, and
            features are accepted too.

    Raises:
        ConfigError: if the kind is unknown or a size is not positive.
    """
    if kind not in _CORES:
        raise ConfigError(f"kind {kind!r} is unknown; accepted: {', '.join(_CORES)}")
    check_sizes(inputs=inputs, classes=classes, width=width, layers=layers)
    core = _CORES[kind](
        input_size=width if embed else inputs, hidden_size=width, num_layers=layers, batch_first=True
    )
    return RecurrentNetwork(core, nn.Linear(width, classes), nn.Embedding(inputs, width) if embed else None)


def encode(x: Tensor, inputs: int, embedding: nn.Embedding | None, dtype: torch.dtype) -> Tensor:
    """Return the input of a network as floats, ``(B, T, F)``: embedded, one-hot, or as it is.

    Args:
        x: tokens ``(B, T)`` int64, or features ``(B, T, F)``.
        inputs: number of tokens, or of features.
        embedding: of tokens; None where they become one-hot.
        dtype: of one-hot tokens.

    Raises:
        ShapeError: if ``x`` is neither, features come where tokens are embedded, or, on a CPU, a token is out of
            range.
    """
    given = f"the input has shape {tuple(x.shape)} and dtype {x.dtype}"
    if x.is_floating_point():
        if embedding is not None:
            raise ShapeError(f"{given}, expected tokens (B, T) int64; for features, build with embed=False")
        if x.ndim != 3 or x.shape[2] != inputs:
            raise ShapeError(f"{given}, expected (B, T, {inputs}); build with the number of your features")
        return x
    if x.ndim != 2 or x.dtype != torch.int64:
        raise ShapeError(
            f"{given}, expected tokens (B, T) int64, or features (B, T, F); convert with .long()"
        )
    # Values are not looked at, which would wait for the device (as F.one_hot does): on a CPU the kernels look at them.
    try:
        if embedding is not None:
            return embedding(x)
        return torch.zeros(*x.shape, inputs, dtype=dtype, device=x.device).scatter_(2, x.unsqueeze(2), 1)
    except (IndexError, RuntimeError) as error:
        if not x.is_cpu or not x.numel() or 0 <= int(x.min()) <= int(x.max()) < inputs:
            raise
        raise ShapeError(
            f"the input has tokens from {int(x.min())} to {int(x.max())}, expected 0 to {inputs - 1}; give characters "
            "that the network has not been built for a token of their own, as Text.unknown does"
        ) from error


def check_state(state: RecurrentState, num_parts: int, shape: tuple[int, ...]) -> None:
    """Raise an error unless a state has so many parts of this shape.

    Raises:
        ShapeError: as said.
    """
    found = [tuple(part.shape) for part in state]
    if found != [shape] * num_parts:
        raise ShapeError(
            f"the state has parts of shape {', '.join(map(str, found)) or 'none'}, expected {num_parts} of "
            f"{shape}; begin with initial_state({shape[0]}), and anew where the batch changes"
        )


def check_sizes(**sizes: int) -> None:
    """Raise an error unless all of these are positive.

    Raises:
        ConfigError: names the first that is not.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name}={size}: expected at least 1")

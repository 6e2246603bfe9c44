"""Recurrent reference networks: LSTM, GRU and plain cells, whose state is an argument and a result of each call."""

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

#: State that a network carries from one unroll to the next: tensors whose first dimension is the batch.
RecurrentState = tuple[Tensor, ...]

_CORES: dict[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class RecurrentNetwork(nn.Module):
    """A recurrent core with a linear output at every step.

    The returned state is attached to the graph; the caller truncates the graph, or injects a gradient, between two
    calls. One call of a fused kernel computes all steps of an unroll. The CUDA kernels have a backward pass in training
    mode only.

    Args:
        core: ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``; batch first, one direction.
        head: linear output layer on the core's output.
        embedding: layer that embeds tokens; None for one-hot tokens or features.

    Attributes:
        core: the recurrent core, or another module with the same signature.
        head: the output layer.
        embedding: the embedding, or None.
    """

    # Why tokens are one-hot by default: measured on one CPU thread (forward and backward, LSTM and GRU of 128 to 512
    # units, 51 characters), they take a tenth to a half less time than an embedding of the core's width, whose matrix
    # product is larger. ``batch_first`` makes no difference.

    def __init__(self, core: nn.RNNBase, head: nn.Linear, embedding: nn.Embedding | None = None) -> None:
        super().__init__()
        self.core = core
        self.head = head
        self.embedding = embedding
        self._inputs = core.input_size if embedding is None else embedding.num_embeddings
        self._num_parts = 2 if isinstance(core, nn.LSTM) else 1
        self._state_shape = (core.num_layers, core.hidden_size)

    def initial_state(
        self, batch_size: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> RecurrentState:
        """Return the state at the beginning of an episode: zeros.

        Args:
            batch_size: ``B``.
            device: device; None for that of the weights.
            dtype: dtype; None for that of the weights.

        Returns:
            ``(h, c)`` for an LSTM, ``(h,)`` otherwise; each ``(B, layers, H)``. Unlike in ``nn.LSTM`` the batch comes
            first, because interfaces expect it there.
        """
        weight = self.head.weight
        return tuple(
            torch.zeros(
                batch_size, *self._state_shape, device=device or weight.device, dtype=dtype or weight.dtype
            )
            for _ in range(self._num_parts)
        )

    def features(self, x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Run the core over an unroll.

        Args:
            x: tokens ``(B, T)`` int64, or features ``(B, T, F)``.
            state: state from `initial_state` or from the previous unroll.

        Returns:
            The last layer's output at every step, ``(B, T, H)``, and the state after the last step.

        Raises:
            ShapeError: if the shape of the input or of the state is wrong.
        """
        z = encode(x, self._inputs, self.embedding, self.head.weight.dtype)
        check_state(state, self._num_parts, (x.shape[0], *self._state_shape))
        # (B, layers, H) -> (layers, B, H), contiguous for the fused kernels; no copy with one layer.
        turned = tuple(part.transpose(0, 1).contiguous() for part in state)
        outputs, after = self.core(z, turned if self._num_parts == 2 else turned[0])
        parts: RecurrentState = after if self._num_parts == 2 else (after,)
        # Under autocast some kernels return half precision; the carried state keeps its dtype.
        return outputs, tuple(part.transpose(0, 1).to(state[0].dtype) for part in parts)

    def forward(self, x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """Return the outputs at every step, ``(B, T, classes)``, and the state after the last step.

        Arguments and errors are those of `features`.
        """
        features, state = self.features(x, state)
        return self.head(features), state


def recurrent_network(
    kind: str, inputs: int, classes: int, width: int, layers: int = 1, embed: bool = False
) -> RecurrentNetwork:
    """Build a recurrent network with a linear output (DNI §2.2), with PyTorch's initial weights.

    Args:
        kind: ``"lstm"``, ``"gru"``, or ``"rnn"`` for plain tanh cells.
        inputs: number of tokens, or number of features ``F``.
        classes: number of outputs.
        width: ``H``, number of units in a layer.
        layers: number of recurrent layers.
        embed: whether to embed tokens in vectors of size ``width``. Otherwise tokens become one-hot vectors, and
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
    """Return the input of a network as floats, ``(B, T, F)``: embedded or one-hot tokens, or features unchanged.

    Args:
        x: tokens ``(B, T)`` int64, or features ``(B, T, F)``.
        inputs: number of tokens, or of features.
        embedding: embedding of the tokens; None for one-hot vectors.
        dtype: dtype of the one-hot vectors.

    Raises:
        ShapeError: if ``x`` is neither tokens nor features, if it is features but tokens are embedded, or, on a CPU, if
            a token is out of range.
    """
    given = f"the input has shape {tuple(x.shape)} and dtype {x.dtype}"
    if x.is_floating_point():
        if embedding is not None:
            raise ShapeError(
                f"{given}, expected tokens (B, T) int64; build the network with embed=False for features"
            )
        if x.ndim != 3 or x.shape[2] != inputs:
            raise ShapeError(
                f"{given}, expected (B, T, {inputs}); build the network with your number of features"
            )
        return x
    if x.ndim != 2 or x.dtype != torch.int64:
        raise ShapeError(
            f"{given}, expected tokens (B, T) int64 or features (B, T, F); convert tokens with .long()"
        )
    # Checking the values, as F.one_hot does, would wait for the device. On a CPU the kernels check them.
    try:
        if embedding is not None:
            return embedding(x)
        return torch.zeros(*x.shape, inputs, dtype=dtype, device=x.device).scatter_(2, x.unsqueeze(2), 1)
    except (IndexError, RuntimeError) as error:
        if not x.is_cpu or not x.numel() or 0 <= int(x.min()) <= int(x.max()) < inputs:
            raise
        raise ShapeError(
            f"the input has tokens from {int(x.min())} to {int(x.max())}, expected 0 to {inputs - 1}; build the network "
            "with more tokens, or map unknown characters to one token as Text.unknown does"
        ) from error


def check_state(state: RecurrentState, num_parts: int, shape: tuple[int, ...]) -> None:
    """Check that a state has ``num_parts`` tensors of a shape.

    Raises:
        ShapeError: if it has not.
    """
    found = [tuple(part.shape) for part in state]
    if found != [shape] * num_parts:
        raise ShapeError(
            f"the state has tensors of shape {', '.join(map(str, found)) or 'none'}, expected {num_parts} of "
            f"{shape}; begin with initial_state({shape[0]}), and again whenever the batch size changes"
        )


def check_sizes(**sizes: int) -> None:
    """Check that all sizes are positive.

    Raises:
        ConfigError: if one is not; the message names the first.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{name}={size}: expected at least 1")

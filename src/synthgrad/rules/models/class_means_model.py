"""The linear model with a running mean for each class, which does not wait for an optimizer to find the means."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import ConfigError
from ...core.given import check_whole
from ..context_input import add_up, check_context, look_up
from .base import GradientModel

__all__ = ["ClassMeansModel", "check_gain", "check_rank", "check_rate", "mean_error"]

#: Share of a batch's rows from which the mean of a class counts in full: of 128 rows, four. Of fewer it is taken as if the
#: missing ones had no error.
_FULL_SHARE = 1 / 32
#: Number of classes up to which rows are added up as a product with one-hot rows.
_MOST_ONE_HOT = 256


class ClassMeansModel(GradientModel):
    """Linear ``M(h, c) = gain · h Wᵀ / √H + t_c`` on the features of ``h``, place by place.

    With a rank ``W`` is a product, ``W = U V · H / rank`` with ``U (H, rank)`` and ``V (rank, H)``, which takes ``2 rank / H`` of the
    arithmetic; with rank 0 it is diagonal and takes next to none.

    These are the functions of a linear `DenseModel`; what differs is how they are learned. ``t_c`` is no parameter but
    a buffer: when the messages of a batch come, it moves by ``rate`` times the mean error of the rows of class ``c``,
    and ``W`` then learns by gradient from the error that is left. So the prediction is right on average for every class
    after one batch, whatever the optimizer and its rate. An optimizer such as Adam needs hundreds of steps until ``t_c``
    has the size of the messages, and meanwhile lets the modules below learn from noise. ``√H`` makes a step of Adam
    change the prediction by as much in a wide network as in a narrow one.

    The state of a linear `DenseModel` with a context can be loaded.

    A context of features enters as ``c t``, and ``t`` moves by the error that each feature has a share in.

    Processes that train on different batches average the gradients of ``W``, and each has its own means, unless their
    buffers are synchronised as ``DistributedDataParallel`` does.

    Args:
        features: ``H``.
        width: number of classes, or context features; at least 1.
        rate: share of a batch's mean error that is taken away, above 0 up to 1.
        gain: factor on the linear part, above 0.
        rank: of ``W``, 1 to ``H``; 0 for a diagonal; None for a matrix without constraints.
        features_at: the dimension of ``h`` that holds the features; -1 for the last one.
        name: name of the interface.

    Raises:
        ConfigError: if a number is out of its range, or there is no context.
    """

    has_offset = True

    table: Tensor  # (classes, H)

    def __init__(
        self,
        features: int,
        width: int,
        *,
        rate: float = 1.0,
        gain: float = 3.0,
        rank: int | None = None,
        features_at: int = -1,
        name: str = "?",
    ) -> None:
        super().__init__(width, name)
        check_rate(rate)
        check_gain(gain)
        check_rank(rank)
        if rank is not None and rank > features:
            raise ConfigError(
                f"interface '{name}': rank={rank} for messages of {features} features: expected at most as many; take a "
                "smaller rank, or None"
            )
        if not width:
            raise ConfigError(
                f"interface '{name}': means of classes need a context; give the rule context=, or use models.dense()"
            )
        self.features = features
        self.rate = rate
        self.gain = gain
        self.features_at = features_at
        self.scale = gain * features**-0.5
        self.rank = rank
        self.down: nn.Parameter | None = None
        if rank:
            self.scale *= features / rank
            self.down = nn.Parameter(torch.randn(rank, features) * features**-0.5)
        shape = (features,) if rank == 0 else (features, features if rank is None else rank)
        self.weight = nn.Parameter(torch.zeros(shape))
        self.register_buffer("table", torch.zeros(width, features))

    def extra_repr(self) -> str:
        rank = "" if self.rank is None else f", rank={self.rank}" if self.rank else ", diagonal"
        return f"{self.features} features, {self.width} classes, rate={self.rate:g}, gain={self.gain:g}{rank}"

    def check(self, h: Tensor, c: Tensor | None) -> None:
        at = self.features_at
        if h.ndim < 2 or h.ndim <= at or h.shape[at] != self.features:
            before = ", ".join(["B", *["_"] * (at - 1)])
            self._refuse(h, f"(..., {self.features})" if at < 0 else f"({before}, {self.features}, ...)")
        check_context(c, self.width, self._last(h), self.name)

    def forward(self, h: Tensor, c: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        offset = self.offset(h, c)
        assert offset is not None
        return self.learned(h, c) + offset

    def learned(self, h: Tensor, c: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        rows = self._last(h)
        rows = rows if self.down is None else F.linear(rows, self.down)
        found = rows * self.weight if self.rank == 0 else F.linear(rows, self.weight)
        return self._first(found * self.scale)

    def offset(self, h: Tensor, c: Tensor | None) -> Tensor:
        assert c is not None
        return self._first(self._looked_up(self.table, c, h))

    def _looked_up(self, table: Tensor, c: Tensor, h: Tensor) -> Tensor:
        """Return the rows of a table that a context means, with as many dimensions as ``h``."""
        if c.is_floating_point():
            found = c.to(table.dtype) @ table
        else:
            found = look_up(c, table, self.name, self.ignore_index)
        while found.ndim < h.ndim:  # one row for each example: the same at all places
            found = found.unsqueeze(-2)
        return found

    @torch.no_grad()
    def correct(self, error: Tensor, c: Tensor | None) -> Tensor:
        """Move the means of the classes by the error of a batch; return the error that is left.

        They stay where they are while ``W`` is frozen.

        Args:
            error: prediction minus message, ``(B, ...)``, detached.
            c: the context.
        """
        assert c is not None
        # In a batch of models the weight is a slice of all their weights, which is only there if they learn.
        if isinstance(self.weight, nn.Parameter) and not self.weight.requires_grad:
            return error
        if (
            c.ndim == 1
            and error.ndim == 2
            and self.width <= _MOST_ONE_HOT
            and error.dtype == self.table.dtype
        ):
            return self._correct_by_product(error, c)
        rows = self._last(error).to(self.table.dtype)
        lead = c.ndim - c.is_floating_point()
        own = rows
        if rows.ndim > lead + 1:
            own = rows.flatten(lead, -2).mean(
                lead
            )  # (*c.shape, H): over the places that have no context of their own
        own = own.flatten(0, -2)
        sums = add_up(own, c.flatten(0, lead - 1), self.width, self.ignore_index)
        change = mean_error(*sums, num_rows=len(own)) * self.rate
        self.table.sub_(change)
        return error - self._first(self._looked_up(change, c, rows)).to(error.dtype)

    def _correct_by_product(self, error: Tensor, c: Tensor) -> Tensor:
        """Do the same for an error ``(B, H)`` and class indices ``(B,)``, in fewer and faster operations."""
        is_class = c.unsqueeze(1) == torch.arange(self.width, device=c.device)
        if 0 <= self.ignore_index < self.width:
            is_class &= (c != self.ignore_index).unsqueeze(1)
        one_hot = is_class.to(error.dtype)  # (B, classes)
        counts = one_hot.sum(0).clamp_min(max(len(error), 1) * _FULL_SHARE)
        change = one_hot.t() @ error / counts.unsqueeze(1)
        self.table.sub_(change, alpha=self.rate)
        return torch.addmm(error, one_hot, change, alpha=-self.rate)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Load the state of this model, or that of a linear `DenseModel`, which is the same function."""
        learned = state_dict.get(f"{prefix}first.weight")
        if learned is not None and f"{prefix}weight" not in state_dict and self.rank is None:
            state_dict[f"{prefix}weight"] = state_dict.pop(f"{prefix}first.weight") / self.scale
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _last(self, h: Tensor) -> Tensor:
        return h if self.features_at < 0 else h.movedim(self.features_at, -1)

    def _first(self, h: Tensor) -> Tensor:
        return h if self.features_at < 0 else h.movedim(-1, self.features_at)


def mean_error(sums: Tensor, weights: Tensor, most: Tensor, *, num_rows: int) -> Tensor:
    """Return the mean error of every class, ``(..., classes, H)``, as far as the table moves by it.

    Args:
        sums: of errors, as `context_input.add_up` has found them, ``(..., classes, H)``.
        weights: theirs, ``(..., classes)``.
        most: the largest weight of a row, ``(...)``.
        num_rows: number of rows that were added up.
    """
    least = (most * (num_rows * _FULL_SHARE)).unsqueeze(-1)
    # Without any row of weight there is no error.
    return sums / weights.maximum(least).clamp_min(torch.finfo(sums.dtype).tiny).unsqueeze(-1)


def check_rate(rate: float) -> None:
    """Raise a `ConfigError` unless ``rate`` is above 0 and up to 1."""
    if not 0 < rate <= 1:
        raise ConfigError(
            f"rate={rate!r}: expected a number above 0 up to 1, the share of the error to take away"
        )


def check_rank(rank: int | None) -> None:
    """Raise a `ConfigError` unless ``rank`` is a whole number from 0, or None."""
    if rank is not None:
        check_whole("rank", rank, 0, "rank of the linear part, 0 for a diagonal")


def check_gain(gain: float) -> None:
    """Raise a `ConfigError` unless ``gain`` is a finite number above 0."""
    if not 0 < gain < float("inf"):
        raise ConfigError(f"gain={gain!r}: expected a finite number above 0, such as 3")

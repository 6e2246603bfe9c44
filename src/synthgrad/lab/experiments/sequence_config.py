"""Configurations of runs of recurrent networks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...core import ConfigError
from ..tasks.episodes import SPREAD
from .config import Schedule

__all__ = ["BoundarySettings", "CharRun", "CopyRun", "SequenceCell", "SequenceRun"]


@dataclass(frozen=True, slots=True)
class SequenceCell:
    """What is trained on what.

    Attributes:
        data: task or text.
        arch: kind of the network: ``lstm``, ``gru`` or ``rnn``.
        layers: recurrent layers.
        width: units of a layer.
        unroll: ``T``, steps of an unroll.
    """

    data: str
    arch: str = "lstm"
    layers: int = 1
    width: int = 256
    unroll: int = 5

    def __post_init__(self) -> None:
        for name in ("layers", "width", "unroll"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: expected at least 1")


@dataclass(frozen=True, slots=True)
class BoundarySettings:
    """Settings of what happens between unrolls.

    Attributes:
        hidden: widths of the hidden layers of ``M``; None for one as wide as the network (DNI §3.2).
        norm: BatchNorm in these. What differs between the states of a batch is small beside what they have in
            common, and without it ``M`` takes long to see it.
        alpha: factor on the synthetic gradient where it is used.
        lr_factor: learning rate of ``M`` over that of the network.
        mix: ``λ``, with ``window`` unrolls to an update.
        window: unrolls to an update.
        observe_every: ``M`` learns at one unroll in so many.
        aux_weight: of the auxiliary task's loss.
        aux_hidden: widths of the hidden layers of its head; None for one as wide as the network.
        rate: share of a batch's error that least squares take away.
        damping: of least squares.
        max_norm: norm to which the network's gradients are clipped, whatever the method; None for as they are.
    """

    hidden: tuple[int, ...] | None = None
    norm: bool = True
    alpha: float = 0.1
    lr_factor: float = 1.0
    mix: float = 0.0
    window: int = 1
    observe_every: int = 1
    aux_weight: float = 1.0
    aux_hidden: tuple[int, ...] | None = None
    rate: float = 0.7
    damping: float = 0.01
    max_norm: float | None = None

    def recorded(self, method: str) -> dict[str, Any]:
        """Return the settings that a method's results depend on."""
        found: dict[str, Any] = {} if self.max_norm is None else {"max_norm": self.max_norm}
        if method == "bptt":
            return found
        if method.startswith("dni_ls"):
            found |= {"alpha": self.alpha, "rate": self.rate, "damping": self.damping}
        else:
            found |= {"norm": self.norm, "alpha": self.alpha, "lr_factor": self.lr_factor}
            if self.hidden is not None:
                found["hidden"] = list(self.hidden)
        if self.observe_every > 1:
            found["observe_every"] = self.observe_every
        if self.window > 1:
            found |= {"mix": self.mix, "window": self.window}
        if method.endswith("_aux"):
            found["aux_weight"] = self.aux_weight
            if self.aux_hidden is not None:
                found["aux_hidden"] = list(self.aux_hidden)
        return found


@dataclass(frozen=True, slots=True)
class SequenceRun:
    """One run of a recurrent network; see `AnyRun` for what all runs have.

    Attributes:
        precision: ``float32``, or ``bfloat16`` for matrix products under autocast.
    """

    experiment: str
    tier: str
    method: str
    seed: int
    cell: SequenceCell
    schedule: Schedule
    rule: BoundarySettings = field(default_factory=BoundarySettings)
    device: str = "cpu"
    precision: str = "float32"
    data_dir: str | None = None
    estimated_ratio: float | None = None
    tensorboard: str | None = None
    snapshots: str | None = None

    @property
    def label(self) -> str:
        """A short name for progress bars."""
        return f"{self.method} T={self.cell.unroll}, seed {self.seed}"

    def recorded(self) -> dict[str, Any]:
        """Return the settings that stand under ``config`` in a record."""
        found: dict[str, Any] = {
            "lr": self.schedule.lr,
            "milestones": list(self.schedule.milestones),
            "eval_every": self.schedule.eval_every,
            "rule": self.rule.recorded(self.method),
            "optimizer": "Adam",
        }
        if self.precision != "float32":
            found["precision"] = self.precision
        return found


@dataclass(frozen=True, slots=True)
class CopyRun(SequenceRun):
    """A run of Copy or Repeat Copy; a step is a batch of episodes.

    Attributes:
        symbols: characters of the alphabet.
        threshold: bits per character under which a length is solved.
        spread: over how many unrolls the rows of a batch begin; 1 for all in step.
    """

    symbols: int = 2
    threshold: float = 0.15
    spread: int = SPREAD

    def recorded(self) -> dict[str, Any]:
        """Return the settings that stand under ``config`` in a record."""
        # Named, not bare super(): slots make another class of this one, which the bare form does not know.
        return {
            **SequenceRun.recorded(self),
            "symbols": self.symbols,
            "threshold_bits": self.threshold,
            "spread": self.spread,
        }


@dataclass(frozen=True, slots=True)
class CharRun(SequenceRun):
    """A run of a character language model; a step is an unroll.

    Attributes:
        most_valid: characters of the validation part that are measured now and then, the first ones; None for all.
    """

    most_valid: int | None = None

    def recorded(self) -> dict[str, Any]:
        """Return the settings that stand under ``config`` in a record."""
        return {**SequenceRun.recorded(self), "most_valid": self.most_valid}

"""Complete configurations of training runs, as frozen dataclasses; nothing is read from elsewhere."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ...core import ConfigError

__all__ = ["CRITICS", "ENGINES", "HEADS", "PRECISIONS", "Cell", "RuleSettings", "RunConfig", "Schedule"]

ENGINES = ("in-process", "layer-parallel", "plain", "stages")
PRECISIONS = ("float32", "bfloat16")
HEADS = ("linear", "convolutional")
CRITICS = ("classifier", "value")


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a run trains; the same for every method of a comparison.

    Attributes:
        steps: number of batches.
        batch_size: examples in a batch.
        lr: learning rate of Adam at the start.
        milestones: shares of ``steps`` at which the learning rate is divided by ten.
        eval_every: steps between evaluations.
    """

    steps: int
    batch_size: int = 256
    lr: float = 3e-4
    milestones: tuple[float, ...] = (0.6, 0.8)
    eval_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "eval_every"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name.replace('_', ' ')} {value}: expected at least 1")
        if not math.isfinite(self.lr) or self.lr <= 0:
            raise ConfigError(f"learning rate {self.lr}: expected a finite number over 0, such as 3e-4")

    def lr_factor(self, step: int) -> float:
        """Return the factor on the learning rate at a step."""
        return 0.1 ** sum(step >= share * self.steps for share in self.milestones)


@dataclass(frozen=True, slots=True)
class Cell:
    """What is trained on what: a cell of an experiment's table.

    Attributes:
        data: name of the data set.
        arch: ``fcn``, ``cnn``, or ``package.module:factory`` for a user's model.
        layers: weight layers, the output layer included; None for a user's model.
        width: units (filters) of a hidden layer; None for a user's model.
        at: names of the submodules after which to cut; empty for the network's own.
        update_prob: probability of an update of each module in a step, in unlocked training.
        engine: one of `ENGINES`.
    """

    data: str
    arch: str = "fcn"
    layers: int | None = 4
    width: int | None = 256
    at: tuple[str, ...] = ()
    update_prob: float = 1.0
    engine: str = "in-process"

    def __post_init__(self) -> None:
        if not 0 < self.update_prob <= 1:
            raise ConfigError(f"update probability {self.update_prob}: expected a number over 0 and up to 1")


#: Settings of a rule that every record names.
_FIRST = ("hidden", "norm", "like_layer", "lr_factor", "constant_lr", "per_example")


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """Settings of a method's rule.

    Attributes:
        hidden: widths of the hidden layers of ``M``.
        norm: BatchNorm in these.
        like_layer: ``M`` structured like its layer, in place of ``hidden``.
        lr_factor: learning rate of the rules' parameters over that of the network, at the start.
        constant_lr: keep the rules' learning rate when the network's falls.
        per_example: messages in per-example units; False for gradients as the criterion reduced them,
            the common mistake, kept for the record of what it costs.
        decay: of the average of an example's messages, for stale gradients.
        delay: steps that a message takes to cross an interface.
        shrink: factor on a delayed gradient at each interface.
        input_hidden: widths of the hidden layers of the input model ``I``, for complete unlock.
        input_lr_factor: learning rate of ``I`` over that of the network; None for that of the other rules.
        warm_up: batches for which modules learn from the true gradient, beside which the rule learns.
        freeze_after: batches after which the rule learns no more, or None.
        min_cosine: modules learn from the true gradient while the rule's cosine is under this, or None.
        true_messages: the rule learns from true gradients, by a pass of their own; in the plain engine.
        kernel: odd size of the kernels of a convolutional ``M``.
        maps: the label enters a convolutional ``M`` as a learned map for each class, in place of masks.
        head: of a local loss or critic, one of `HEADS`; ``convolutional`` is for images only.
        pool: places that an image is averaged to in a head, along each side.
        critic: form of a critic, one of `CRITICS`.
    """

    hidden: tuple[int, ...] = ()
    norm: bool = True
    like_layer: bool = False
    lr_factor: float = 1.0
    constant_lr: bool = False
    per_example: bool = True
    decay: float = 0.0
    delay: int = 0
    shrink: float = 1.0
    input_hidden: tuple[int, ...] = (256,)
    input_lr_factor: float | None = None
    warm_up: int = 0
    freeze_after: int | None = None
    min_cosine: float | None = None
    true_messages: bool = False
    kernel: int = 5
    maps: bool = False
    head: str = "linear"
    pool: int = 2
    critic: str = "classifier"

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ConfigError(f"kernel {self.kernel}: expected an odd number, such as 3 or 5")
        if self.pool < 1:
            raise ConfigError(f"pool {self.pool}: expected at least 1")
        if self.head not in HEADS:
            raise ConfigError(f"head '{self.head}' is unknown; accepted: {', '.join(HEADS)}")
        if self.critic not in CRITICS:
            raise ConfigError(f"critic '{self.critic}' is unknown; accepted: {', '.join(CRITICS)}")

    @property
    def hands_over(self) -> bool:
        """Is the rule handed over to from backpropagation?"""
        return bool(self.warm_up) or self.freeze_after is not None or self.min_cosine is not None

    def recorded(self) -> dict[str, Any]:
        """Return the settings for a record; later ones only where they are not the default.

        So a run that was recorded before a setting came into being is still known as the same run.
        """
        default = {f.name: f.default for f in fields(self)}
        return {k: v for k, v in asdict(self).items() if k in _FIRST or v != default[k]}


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One training run, complete.

    Attributes:
        experiment, tier, method, seed: its place in the results.
        cell, schedule, rule: what, how, and with which rule.
        hold_out: number of training examples to measure on in place of the test set, for selections.
        monitor_every: steps between measurements of the interfaces' quality; 0 for none.
        target_error_pct: error whose first crossing is timed.
        device: ``cpu`` or ``cuda``.
        precision: ``float32``, or ``bfloat16``: matrix products and convolutions under autocast; weights,
            optimizers, BatchNorm's statistics and the loss stay in float32.
        compiled: the network runs under ``torch.compile``.
        augment: training images are flipped and shifted at random.
        data_dir: directory of data files, or None.
        estimated_ratio: what a step was expected to cost, over one of backpropagation; the run does not
            depend on it.
        tensorboard: folder for event files, or None; the run does not depend on it.
        snapshots: folder for the states of runs under way, or None; the run does not depend on it.
    """

    experiment: str
    tier: str
    method: str
    seed: int
    cell: Cell
    schedule: Schedule
    rule: RuleSettings = field(default_factory=RuleSettings)
    hold_out: int = 0
    monitor_every: int = 100
    target_error_pct: float = 5.0
    device: str = "cpu"
    precision: str = "float32"
    compiled: bool = False
    augment: bool = False
    data_dir: str | None = None
    estimated_ratio: float | None = None
    tensorboard: str | None = None
    snapshots: str | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision '{self.precision}' is unknown; accepted: {', '.join(PRECISIONS)}")

    @property
    def label(self) -> str:
        """A short name for progress bars."""
        return f"{self.method}, seed {self.seed}"

    def recorded(self) -> dict[str, Any]:
        """Return the settings that stand under ``config`` in a record: all that the results depend on.

        Settings that came into being later stand there only where they are not the default.
        """
        later = {
            "precision": "" if self.precision == "float32" else self.precision,
            "compiled": self.compiled,
            "augment": self.augment,
        }
        return {
            **{k: v for k, v in asdict(self.schedule).items() if k not in ("steps", "batch_size")},
            "rule": self.rule.recorded(),
            "optimizer": "Adam",
            "hold_out": self.hold_out,
            "monitor_every": self.monitor_every,
            "target_error_pct": self.target_error_pct,
            **{k: v for k, v in later.items() if v},
        }

"""Settings of a run besides its task: the schedule, and the settings of rules for each kind of network.

The modules `settings`, `payloads` and `run` do not load PyTorch, because the command line builds its options from them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NoReturn

from ..options import Option, option

__all__ = [
    "OPTIMIZERS",
    "BoundarySettings",
    "EdgeSettings",
    "RuleSettings",
    "Schedule",
    "Settings",
    "recorded_fields",
    "refuse",
    "setting",
]

_CHANGED = "recorded only if changed"


def refuse(message: str) -> NoReturn:
    """Raise a `ConfigError` with a message."""
    # Imported here, because it loads PyTorch, for which only an error has to wait.
    from ...core import ConfigError

    raise ConfigError(message)


def setting(default: Any, **metadata: Any) -> Any:
    """Return a dataclass field that records contain only if its value is not the default.

    Every setting that is added later must be declared in this way. Runs that were recorded before are then still
    recognised as the same runs.

    Args:
        default: the field's default.
        metadata: further metadata of the field.
    """
    return field(default=default, metadata={_CHANGED: True, **metadata})


def recorded_fields(settings: Any) -> dict[str, Any]:
    """Return the fields of a dataclass for a record, without those of `setting` that have their default."""
    skipped = {
        f.name
        for f in fields(settings)
        if f.metadata.get(_CHANGED) and getattr(settings, f.name) == f.default
    }
    return {k: v for k, v in asdict(settings).items() if k not in skipped}


#: Optimizers, with their names in records; `optimizers` has their constants.
OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "nadam": "NAdam", "muon": "Muon"}

_OF_OPTIMIZER = ("optimizer", "error_feedback", "accumulate", "versions")
#: The learning rate at the end of a cosine, as a fraction of the first.
_LAST_FACTOR = 0.1


@dataclass(frozen=True, slots=True)
class Schedule:
    """Length of a run, its optimizer and its learning rate; the same for every method of a comparison.

    Attributes:
        steps: number of batches.
        batch_size: number of examples in a batch.
        lr: initial learning rate.
        milestones: fractions of ``steps`` at which the learning rate is divided by ten.
        eval_every: number of steps between evaluations.
        optimizer: one of `OPTIMIZERS`.
        lr_warm_up: number of steps over which the learning rate rises from zero.
        cosine: whether the learning rate falls to a tenth along half a cosine, instead of at milestones.
        error_feedback: whether the optimizer is wrapped in `synthgrad.optim.ErrorFeedback`.
        accumulate: number of batches from which an update is made.
        versions: number of versions of the weights that the in-process engine keeps; None for all that are in use.
    """

    steps: int = option(
        help="Batches to train on; with several numbers each method runs once for each.",
        kind=int,
        listed=True,
        least=1,
        default="the tier's",
    )
    batch_size: int = option(256, "Examples in a batch.", kind=int, metavar="N", default="the tier's")
    lr: float = option(3e-4, "Learning rate at the start.", kind=float, default="the tier's")
    milestones: tuple[float, ...] = (0.6, 0.8)
    eval_every: int = 500
    optimizer: str = setting(
        "adam",
        option=Option(
            "Optimizer; muon is for the matrices of hidden layers, with AdamW for the rest.",
            choices=tuple(OPTIMIZERS),
            default="adam, and adamw for a GPT",
        ),
    )
    lr_warm_up: int = setting(
        0, option=Option("Batches over which the learning rate rises from zero.", kind=int, metavar="N")
    )
    cosine: bool = setting(
        False, option=Option("Let the learning rate fall to a tenth along a cosine.", kind=bool)
    )
    error_feedback: bool = setting(
        False, option=Option("Correct each update by what late gradients cost the one before it.", kind=bool)
    )
    accumulate: int = setting(
        1, option=Option("Batches from which an update is made.", kind=int, metavar="N", default="1")
    )
    versions: int | None = setting(
        None,
        option=Option(
            "Versions of the weights to keep while gradients are under way: 2 (2BW) or 1 (PACI).",
            kind=int,
            metavar="N",
            default="all that are in use",
        ),
    )

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "eval_every", "accumulate"):
            value = getattr(self, name)
            if value < 1:
                refuse(f"{name.replace('_', ' ')} {value}: expected at least 1")
        if not math.isfinite(self.lr) or self.lr <= 0:
            refuse(f"learning rate {self.lr}: expected a finite number over 0, such as 3e-4")
        if self.optimizer not in OPTIMIZERS:
            refuse(f"optimizer '{self.optimizer}' is unknown; accepted: {', '.join(OPTIMIZERS)}")
        if not 0 <= self.lr_warm_up < self.steps:
            refuse(
                f"warm-up of {self.lr_warm_up} batches: expected 0 to {self.steps - 1}, of {self.steps} in all"
            )
        if self.accumulate > self.steps:
            refuse(
                f"updates of {self.accumulate} batches: expected at most {self.steps}, all that the run has; it would make "
                "no update"
            )
        if self.versions not in (None, 1, 2):
            refuse(
                f"versions {self.versions}: expected 2 (2BW) or 1 (PACI), or none to keep all that are in use"
            )

    def lr_factor(self, step: int) -> float:
        """Return the factor of the learning rate at a step."""
        rising = min(1.0, (step + 1) / (self.lr_warm_up + 1))
        if not self.cosine:
            return rising * 0.1 ** sum(step >= share * self.steps for share in self.milestones)
        done = max(0, step - self.lr_warm_up) / max(1, self.steps - self.lr_warm_up)
        return rising * (_LAST_FACTOR + (1 - _LAST_FACTOR) * (1 + math.cos(math.pi * done)) / 2)

    def of_optimizer(self) -> dict[str, Any]:
        """Return the settings of the optimizer and of updates, besides the learning rate."""
        return {name: getattr(self, name) for name in _OF_OPTIMIZER}

    @property
    def only_adam(self) -> bool:
        """Whether the settings of the optimizer are those that every task accepts."""
        return not recorded_fields(self).keys() & set(_OF_OPTIMIZER)


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a method's rule; each kind of network has its own subclass."""

    def recorded(self, method: str) -> dict[str, Any]:
        """Return the settings that a method's results depend on, for the record."""
        raise NotImplementedError


#: Factor on the linear part of ``M`` with means of classes, that of the library.
GAIN = 3.0
HEADS = ("linear", "convolutional", "tokens")
UNEMBEDDINGS = ("own", "network")
CRITICS = ("classifier", "value")


@dataclass(frozen=True, slots=True)
class RuleSettings(Settings):
    """Settings of the rule at the cuts of a feed-forward network or a GPT.

    Attributes:
        hidden: widths of the hidden layers of ``M``.
        norm: whether the hidden layers of ``M`` have BatchNorm.
        like_layer: whether ``M`` has the structure of the layer before the cut, instead of ``hidden``.
        lr_factor: ratio of the rule's initial learning rate to the network's.
        constant_lr: whether the rule keeps its learning rate when the network's is divided.
        per_example: whether messages are in per-example units. False uses gradients as the criterion reduced them, a
            common mistake; the setting exists to measure what it costs.
        decay: decay of the average of an example's messages, for stale gradients.
        delay: number of steps that a message takes to cross an interface. A step is a batch, and an update may be made
            of several.
        shrink: factor on a delayed gradient at each interface.
        input_hidden: widths of the hidden layers of the input model ``I``, for complete unlock.
        input_lr_factor: ratio of the learning rate of ``I`` to the network's; None for ``lr_factor``.
        warm_up: number of batches in which modules learn from the true gradient while the rule learns too.
        freeze_after: number of batches after which the rule stops learning, or None.
        min_cosine: cosine to the true gradient that a rule must reach; below it, modules learn from the true gradient.
            None for no such limit.
        true_messages: whether the rule learns from true gradients, computed in a separate pass; plain engine only.
        kernel: size of the kernels of a convolutional ``M``, an odd number.
        maps: whether a convolutional ``M`` gets the label as a learned map for each class, instead of masks.
        head: form of the head of a local loss or critic, one of `HEADS`; ``convolutional`` is for images only, and
            ``tokens`` for language models.
        pool: resolution to which a head pools an image, along each side.
        critic: form of the critic, one of `CRITICS`.
        blocks: number of private blocks in a head for tokens, each like the block below the cut.
        unembedding: whose unembedding a head for tokens has, one of `UNEMBEDDINGS`: the network's own is read as it is now,
            and not trained from there.
        weight: factor with which a module learns from the correction of its credit; None for what the share and the age of
            the message say.
        share: share of the batches of which messages are wanted, for the correction.
        recompute: whether a module's graph is made anew for the correction of its credit, in place of being kept.
        label_rate: share of a batch's mean error that the means of classes take away in a linear ``M`` with labels, see
            `synthgrad.rules.models.class_means`; 0 for a table that the optimizer learns. An ``M`` with hidden layers has
            no means.
        gain: factor on the linear part of such an ``M``.
        codec: how activations cross an interface, by the name of a codec, see `codec_names`.
        message_codec: how messages cross it; None for as activations do.
    """

    hidden: tuple[int, ...] = ()
    norm: bool = True
    like_layer: bool = False
    lr_factor: float = 1.0
    constant_lr: bool = False
    per_example: bool = True
    decay: float = setting(0.0)
    delay: int = setting(
        0,
        option=Option(
            "Batches that a message takes to cross an interface.",
            kind=int,
            metavar="N",
            default="0, and 1 for delayed and late_correction",
        ),
    )
    shrink: float = setting(1.0)
    input_hidden: tuple[int, ...] = setting((256,))
    input_lr_factor: float | None = setting(None)
    warm_up: int = setting(
        0,
        option=Option(
            "Train with the true gradient for N batches while the rules learn.",
            kind=int,
            metavar="N",
        ),
    )
    freeze_after: int | None = setting(
        None, option=Option("Stop training the rules after N batches.", kind=int, metavar="N")
    )
    min_cosine: float | None = setting(
        None,
        option=Option(
            "Train with the true gradient while a rule's cosine to it is under X.", kind=float, metavar="X"
        ),
    )
    true_messages: bool = setting(False)
    kernel: int = setting(5)
    maps: bool = setting(False)
    head: str = setting("linear")
    pool: int = setting(2)
    critic: str = setting("classifier")
    blocks: int = setting(
        1,
        option=Option(
            "Private blocks of the head at each cut of a GPT; 0 is linear.",
            kind=int,
            metavar="N",
            default="1",
        ),
    )
    unembedding: str = setting(
        "own",
        option=Option(
            "Unembedding of the head at each cut of a GPT: its own, or the network's, which it does not train.",
            choices=UNEMBEDDINGS,
            default="own",
        ),
    )
    weight: float | None = setting(
        0.5,  # as recorded before there was another; methods have None
        option=Option(
            "Factor on the correction of late_correction.",
            kind=float,
            metavar="X",
            default="found for each message by how well the credit agreed with it, and by its age",
        ),
    )
    share: float = setting(
        1.0,
        option=Option(
            "Share of the batches whose messages late_correction wants.",
            kind=float,
            metavar="X",
            default="1",
        ),
    )
    recompute: bool = setting(
        False,
        option=Option("Make the graph anew for the correction of late_correction.", kind=bool),
    )
    label_rate: float = setting(
        0.0,
        option=Option(
            "Share of a batch's error that the means of classes take away in M of cdni; 0 lets the optimizer learn them.",
            kind=float,
            metavar="X",
            default="1 for cdni on a fully connected network or a GPT",
        ),
    )
    gain: float = setting(GAIN)
    codec: str = setting(
        "float32",
        option=Option(
            "What crosses an interface: float32, bfloat16, 8bits, 4bits, subspace:RANK, subspace:RANK:8bits.",
            metavar="CODEC",
            default="float32",
        ),
    )
    message_codec: str | None = setting(
        None,
        option=Option(
            "The same of messages alone; largest:SHARE sends the largest values of each.",
            metavar="CODEC",
            default="that of activations",
        ),
    )

    def __post_init__(self) -> None:
        if not 0 <= self.label_rate <= 1:
            refuse(f"label rate {self.label_rate}: expected 0 to 1")
        if not (math.isfinite(self.gain) and self.gain > 0):
            refuse(f"gain {self.gain}: expected a finite number above 0, such as 3")
        for name in ("delay", "blocks"):
            if getattr(self, name) < 0:
                refuse(f"{name} {getattr(self, name)}: expected at least 0")
        if self.weight is not None and not (math.isfinite(self.weight) and self.weight >= 0):
            refuse(f"weight {self.weight}: expected a finite number of at least 0, such as 0.5")
        if not 0 < self.share <= 1:
            refuse(
                f"share {self.share}: expected a number above 0 up to 1, such as 0.25; with none use local_loss"
            )
        if self.kernel < 1 or self.kernel % 2 == 0:
            refuse(f"kernel {self.kernel}: expected an odd number, such as 3 or 5")
        if self.pool < 1:
            refuse(f"pool {self.pool}: expected at least 1")
        if self.head not in HEADS:
            refuse(f"head '{self.head}' is unknown; accepted: {', '.join(HEADS)}")
        if self.critic not in CRITICS:
            refuse(f"critic '{self.critic}' is unknown; accepted: {', '.join(CRITICS)}")
        if self.unembedding not in UNEMBEDDINGS:
            refuse(f"unembedding '{self.unembedding}' is unknown; accepted: {', '.join(UNEMBEDDINGS)}")

    @property
    def hands_over(self) -> bool:
        """Whether backpropagation hands over to the rule during the run, instead of the rule being used throughout."""
        return bool(self.warm_up) or self.freeze_after is not None or self.min_cosine is not None

    def recorded(self, method: str) -> dict[str, Any]:
        return recorded_fields(self)


@dataclass(frozen=True, slots=True)
class BoundarySettings(Settings):
    """Settings of the rule between the unrolls of a recurrent network.

    Attributes:
        hidden: widths of the hidden layers of ``M``; None for one hidden layer as wide as the network (DNI §3.2).
        norm: whether the hidden layers of ``M`` have BatchNorm. The states of a batch are similar, and without BatchNorm
            ``M`` takes long to learn their differences.
        alpha: factor on the synthetic gradient when it is injected.
        lr_factor: ratio of the learning rate of ``M`` to the network's.
        mix: ``λ``, used when an update spans several unrolls.
        window: number of unrolls per update.
        observe_every: number of unrolls per update of ``M``.
        aux_weight: weight of the auxiliary task's loss.
        aux_hidden: widths of the hidden layers of the auxiliary head; None for one as wide as the network.
        rate: fraction of a batch's error that a least-squares update removes.
        damping: damping of the least squares.
        max_norm: norm to which the network's gradients are clipped, with every method; None for no clipping.
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
class EdgeSettings(Settings):
    """Settings of the rule between two networks that run at different rates.

    Attributes:
        hidden: widths of the hidden layers of ``M``. The default was chosen by ``multinet_search``.
        norm: whether the hidden layers of ``M`` have BatchNorm.
        receiver: whether ``M`` gets the state of B, the ``s_B`` in ``M(h_A, s_B)``.
        lr_factor: ratio of the learning rate of ``M`` to the networks'.
    """

    hidden: tuple[int, ...] = ()
    norm: bool = True
    receiver: bool = True
    lr_factor: float = 1.0

    def recorded(self, method: str) -> dict[str, Any]:
        return {} if method == "bptt" else asdict(self)

"""Settings of a run that are not of its task: the schedule, and the rule of each kind of network.

The modules `settings`, `payloads` and `run` do not load PyTorch, because the command line makes its options from them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NoReturn

from ..options import Option, option

__all__ = [
    "BoundarySettings",
    "EdgeSettings",
    "RuleSettings",
    "Schedule",
    "Settings",
    "recorded",
    "refuse",
    "setting",
]

_CHANGED = "recorded only where it was changed"


def refuse(message: str) -> NoReturn:
    """Raise a `ConfigError`."""
    from ...core import ConfigError  # loads PyTorch, and a value that is refused can wait for it

    raise ConfigError(message)


def setting(default: Any, **metadata: Any) -> Any:
    """Return a field that stands in records only where it is not the default.

    A run that was recorded before the setting came into being is then still known as the same run. Every setting that
    is added later must be declared so.
    """
    return field(default=default, metadata={_CHANGED: True, **metadata})


def recorded(settings: Any, but: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the fields of a dataclass for a record, without those whose default need not be named."""
    skipped = {
        f.name
        for f in fields(settings)
        if f.metadata.get(_CHANGED) and getattr(settings, f.name) == f.default
    }
    return {k: v for k, v in asdict(settings).items() if k not in skipped and k not in but}


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

    steps: int = option(
        help="Batches to train on; several numbers are several budgets.",
        kind=int,
        listed=True,
        least=1,
        default="the tier's",
    )
    batch_size: int = option(256, "Examples in a batch.", kind=int, metavar="N", default="the tier's")
    lr: float = option(3e-4, "Learning rate of Adam at the start.", kind=float, default="the tier's")
    milestones: tuple[float, ...] = (0.6, 0.8)
    eval_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "eval_every"):
            value = getattr(self, name)
            if value < 1:
                refuse(f"{name.replace('_', ' ')} {value}: expected at least 1")
        if not math.isfinite(self.lr) or self.lr <= 0:
            refuse(f"learning rate {self.lr}: expected a finite number over 0, such as 3e-4")

    def lr_factor(self, step: int) -> float:
        """Return the factor on the learning rate at a step."""
        return 0.1 ** sum(step >= share * self.steps for share in self.milestones)

    @property
    def lr_changes(self) -> list[int]:
        """The steps at which the learning rate falls."""
        return [math.ceil(share * self.steps) for share in self.milestones]


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a method's rule; each kind of network has a subclass of its own."""

    def recorded(self, method: str) -> dict[str, Any]:
        """Return the settings that the results of a method depend on."""
        raise NotImplementedError


HEADS = ("linear", "convolutional")
CRITICS = ("classifier", "value")


@dataclass(frozen=True, slots=True)
class RuleSettings(Settings):
    """Settings of the rule at the cuts of a network.

    Attributes:
        hidden: widths of the hidden layers of ``M``.
        norm: whether these have BatchNorm.
        like_layer: whether ``M`` has the structure of its layer, in place of ``hidden``.
        lr_factor: learning rate of the rule's parameters over that of the network, at the start.
        constant_lr: whether the rule's learning rate stays when that of the network falls.
        per_example: whether messages are in per-example units. False is for gradients as the criterion reduced them, a
            common mistake, which is here to record what it costs.
        decay: decay of the average over an example's messages, for stale gradients.
        delay: steps that a message takes to cross an interface.
        shrink: factor on a delayed gradient at each interface.
        input_hidden: widths of the hidden layers of the input model ``I``, for complete unlock.
        input_lr_factor: learning rate of ``I`` over that of the network; None for that of the other rules.
        warm_up: batches for which modules learn from the true gradient while the rule learns beside it.
        freeze_after: batches after which the rule learns no more, or None.
        min_cosine: modules learn from the true gradient while the rule's cosine to it is under this, or None.
        true_messages: whether the rule learns from true gradients, by a pass of their own; in the plain engine.
        kernel: odd size of the kernels of a convolutional ``M``.
        maps: whether the label enters a convolutional ``M`` as a learned map for each class, in place of masks.
        head: form of a local loss or critic, one of `HEADS`; ``convolutional`` is for images only.
        pool: places that an image is averaged to in a head, along each side.
        critic: form of a critic, one of `CRITICS`.
    """

    hidden: tuple[int, ...] = ()
    norm: bool = True
    like_layer: bool = False
    lr_factor: float = 1.0
    constant_lr: bool = False
    per_example: bool = True
    decay: float = setting(0.0)
    delay: int = setting(0)
    shrink: float = setting(1.0)
    input_hidden: tuple[int, ...] = setting((256,))
    input_lr_factor: float | None = setting(None)
    warm_up: int = setting(
        0,
        option=Option(
            "Learn from the true gradient for N batches while the rules learn beside it.",
            kind=int,
            metavar="N",
        ),
    )
    freeze_after: int | None = setting(
        None, option=Option("Rules learn no more after N batches.", kind=int, metavar="N")
    )
    min_cosine: float | None = setting(
        None,
        option=Option(
            "Learn from the true gradient while a rule's cosine to it is under X.", kind=float, metavar="X"
        ),
    )
    true_messages: bool = setting(False)
    kernel: int = setting(5)
    maps: bool = setting(False)
    head: str = setting("linear")
    pool: int = setting(2)
    critic: str = setting("classifier")

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            refuse(f"kernel {self.kernel}: expected an odd number, such as 3 or 5")
        if self.pool < 1:
            refuse(f"pool {self.pool}: expected at least 1")
        if self.head not in HEADS:
            refuse(f"head '{self.head}' is unknown; accepted: {', '.join(HEADS)}")
        if self.critic not in CRITICS:
            refuse(f"critic '{self.critic}' is unknown; accepted: {', '.join(CRITICS)}")

    @property
    def hands_over(self) -> bool:
        """Whether the rule is handed over to from backpropagation."""
        return bool(self.warm_up) or self.freeze_after is not None or self.min_cosine is not None

    def recorded(self, method: str) -> dict[str, Any]:
        return recorded(self)


@dataclass(frozen=True, slots=True)
class BoundarySettings(Settings):
    """Settings of what happens between the unrolls of a recurrent network.

    Attributes:
        hidden: widths of the hidden layers of ``M``; None for one as wide as the network (DNI §3.2).
        norm: whether these have BatchNorm. The states of a batch differ little beside what they have in common, and
            without BatchNorm ``M`` takes long to see the difference.
        alpha: factor on the synthetic gradient where it is used.
        lr_factor: learning rate of ``M`` over that of the network.
        mix: ``λ``, with ``window`` unrolls to an update.
        window: unrolls to an update.
        observe_every: ``M`` learns at one unroll in so many.
        aux_weight: weight of the auxiliary task's loss.
        aux_hidden: widths of the hidden layers of its head; None for one as wide as the network.
        rate: share of a batch's error that least squares take away.
        damping: damping of least squares.
        max_norm: norm to which the network's gradients are clipped, whatever the method; None for no clipping.
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
    """Settings of the rule between two networks that tick at different rates.

    Attributes:
        hidden: widths of the hidden layers of ``M``. The default was chosen by ``multinet_search``.
        norm: whether these have BatchNorm.
        receiver: whether ``M`` sees the state of B, the ``s_B`` of ``M(h_A, s_B)``.
        lr_factor: learning rate of ``M`` over that of the networks.
    """

    hidden: tuple[int, ...] = ()
    norm: bool = True
    receiver: bool = True
    lr_factor: float = 1.0

    def recorded(self, method: str) -> dict[str, Any]:
        return {} if method == "bptt" else asdict(self)

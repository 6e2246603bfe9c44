"""Late correction around any rule: credit now, and what it lacked when the true message comes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..core import ConfigError, Credit, Info, Message, Rule
from ..core.given import brief, check_whole
from .wrapper import Wrapper

__all__ = ["LateCorrection", "Weight"]

#: The weight of a correction: a number, or a function of how many updates the module has made since.
Weight = float | Callable[[int], float]


class LateCorrection(Wrapper):
    """The module below learns from the rule's credit at once, and from ``(δ − δ̂) · weight / share`` when ``δ`` has come.

    The credit ``δ̂`` is a control variate (cf. arXiv 2511.05187): with ``weight`` 1, and messages of which a share
    ``share`` comes, credit and corrections sum to the late true gradient in expectation, whatever
    ``δ̂`` is. They then have all of its lateness too; a weight between 0 and 1 takes a part of both. The module keeps its
    graph until the message has come, and sends its own message down only then: what the modules below are corrected by
    is made of ``δ`` itself, whatever the weight. The rule inside learns as it would alone. `InProcess` takes this
    rule, and `Stages` where the rule inside learns nothing from messages, all of them are wanted, and graphs are kept.

    Without a ``weight`` it is found for every message, by how well the credit agreed with it::

        weight = share · ⟨δ̂, δ⟩ / (‖δ‖ ‖δ − δ̂‖) / (1 + age)^¼, the first fraction at least 0 and at most 1

    That fraction is the part of the credit that points along the message, over the size of what it lacked. So no correction
    is larger than the useful part of what came at once, whatever the share, and that is what keeps a late part from
    swinging: descent along ``a θ(t) + b θ(t - lag)`` is stable at every lag, for small enough rates, if ``|b| < a``. A
    credit that is nearly right is corrected in full, one that points elsewhere not at all. Optimizers with momentum are late
    themselves, so that old messages count for less: the age is in updates of the module, where the engine tells it. The
    rule is ours, and the root was chosen by held-out text: ``synthgrad run gpt_search`` holds it against constant weights.

    Args:
        rule: gives the credit; any that gives it at once.
        weight: of the correction, 0 or more; or a function of the message's age in updates of the module, which is asked
            as each message comes, such as ``lambda age: 0.5 ** age``; one with a name, if the network is to be pickled.
            None for the rule above, which takes three inner products of a message's size, and on a GPU waits for them.
        share: of the batches whose messages are wanted, above 0 up to 1. For other batches none is sent, the credit is
            final, and the rule inside learns nothing from above. Which they are depends on ``seed`` and the number of the
            batch alone, so that it is the same at all interfaces, and in a run that is resumed.
        recompute: whether the module's graph is made anew when the message comes, with the weights of then, in place of
            keeping it. That takes no memory meanwhile, costs a forward pass, and pulls the difference back through the
            current weights; what the module sends down is then the true message only as far as they have not changed.
        seed: of the choice of batches.

    Attributes:
        last_weight: the weight of the newest correction; None before there was one.

    Raises:
        ConfigError: if an argument is out of its range; if the rule waits for messages, gives no credit, or lets its error
            flow into ``h``; in training, if a weight is no finite number of 0 or more, or if it depends on an age, or
            the choice of batches on their numbers, that the engine does not tell.

    >>> import synthgrad as sg
    >>> sg.rules.LateCorrection(sg.LocalLoss(10), weight=0.5)
    LateCorrection(
      weight=0.5
      (rule): LocalLoss(10 classes)
    )
    """

    corrects = True

    def __init__(
        self,
        rule: Rule,
        weight: Weight | None = None,
        share: float = 1.0,
        *,
        recompute: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(rule)
        if rule.waits:
            raise ConfigError(
                f"LateCorrection around {type(rule).__name__}: by that rule the module waits for its message, so there is "
                "nothing to correct; give a rule with a credit of its own, such as LocalLoss or SyntheticGradient"
            )
        if rule.error_to_h:
            raise ConfigError(
                f"LateCorrection around {type(rule).__name__}: the error of that rule flows into h, which the plain loop "
                "alone can do, and that loop corrects nothing; give error_to_h=False"
            )
        if weight is not None and not callable(weight):
            _check_weight(
                weight,
                "expected a number, 0 or more, a function of the message's age in updates, or None for one that is found",
            )
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ConfigError(
                f"share={brief(share)}: expected a number above 0 up to 1, the share of messages that come"
            )
        if not isinstance(recompute, bool):
            raise ConfigError(f"recompute={brief(recompute)}: expected True or False")
        check_whole("seed", seed, 0, "seed of the choice of batches")
        self.weight = weight
        self.share = share
        self.seed = seed
        self.recomputes = recompute
        self.last_weight: float | None = None
        self._adopt(rule)

    def _adopt(self, rule: Rule) -> None:
        super()._adopt(rule)
        self.listens = True  # also where the rule inside does not

    def extra_repr(self) -> str:
        weight = "by agreement" if self.weight is None else "a function of age"
        weight = f"{self.weight:g}" if isinstance(self.weight, int | float) else weight
        share = "" if self.share == 1 else f", share={self.share:g}"
        return f"weight={weight}{share}{', recompute=True' if self.recomputes else ''}"

    def credit(self, h: Tensor, info: Info) -> Credit:
        made = super().credit(h, info)
        if made.delta is None:
            raise ConfigError(
                f"interface '{self.name}': LateCorrection around {type(self.rule).__name__}, which gave no credit to "
                "correct; give a rule with a credit of its own, or TrueGradient, with which the module waits"
            )
        wanted = self.wants_message(info.step)
        return replace(made, pending=made.pending if self.rule.listens and wanted else (), final=not wanted)

    def wants_message(self, step: int | None) -> bool:
        """Is the message of a batch wanted?

        Args:
            step: number of the batch.
        """
        if self.share == 1:
            return True
        if step is None:
            raise ConfigError(
                f"interface '{self.name}': share={self.share:g} chooses batches by their numbers, which this engine does not "
                "tell; use InProcess, or share=1"
            )
        return random.Random(f"{self.seed} {step}").random() < self.share

    def observe(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()
    ) -> Tensor | None:
        return super().observe(h, info, message, pending) if self.rule.listens else None

    def correction(self, delta: Tensor, message: Message, info: Info) -> tuple[Tensor, float]:
        true = self.rule.accept(message, info)
        lacked = true - delta
        if self.weight is None:
            weight = self.share * _by_agreement(delta, true, lacked) / (1 + (message.age or 0)) ** 0.25
        else:
            weight = self._weight_at(message.age)
        self.last_weight = weight
        return lacked, weight / self.share

    def _weight_at(self, age: int | None) -> float:
        if isinstance(self.weight, int | float):
            return self.weight
        assert self.weight is not None
        if age is None:
            raise ConfigError(
                f"interface '{self.name}': weight is a function of the message's age in updates, which this engine does not "
                "tell; give a number, or use InProcess"
            )
        found = self.weight(age)
        _check_weight(
            found, f"expected a finite number, 0 or more, at age {age}", f"interface '{self.name}': "
        )
        return float(found)


def _by_agreement(credit: Tensor, message: Tensor, lacked: Tensor) -> float:
    """Return the part of a credit that points along its message, over the size of what it lacked, from 0 to 1."""
    wide = torch.promote_types(credit.dtype, torch.float32)
    flat = [t.detach().to(wide).flatten() for t in (credit, message, lacked)]
    found = torch.stack([flat[0] @ flat[1], flat[1] @ flat[1], flat[2] @ flat[2]])
    along, of_message, of_lacked = found.tolist()
    if along <= 0 or of_message == 0:
        return 0.0
    size = math.sqrt(of_message) * math.sqrt(of_lacked)
    return 1.0 if size <= along else along / size


def _check_weight(weight: object, expected: str, where: str = "") -> None:
    number = weight.item() if isinstance(weight, torch.Tensor) and weight.numel() == 1 else weight
    if (
        isinstance(number, bool)
        or not isinstance(number, int | float)
        or not math.isfinite(number)
        or number < 0
    ):
        raise ConfigError(f"{where}weight={brief(weight)}: {expected}")

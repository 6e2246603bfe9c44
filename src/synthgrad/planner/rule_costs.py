"""What a rule costs at a cut: to give credit, to learn from its own loss, and to learn from a message."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..core import Batch, ConfigError, Credit, Guard, InFlight, Info, Instruments, Message, Port, Rule, Units
from ..core.given import brief
from .clock import Clock

__all__ = ["Answered", "OptimizerFactory", "Silent", "make_optimizers", "rule_cost", "timed_step"]

#: Takes parameters, returns an optimizer or several, with None in place of one that has none of them.
OptimizerFactory = Callable[[Any], "Optimizer | Sequence[Optimizer | None]"]

_WARM_UP = 2


class Silent(Rule):
    """A rule that stands at a cut where there is none."""

    listens = False

    def credit(self, h: Tensor, info: Info) -> Credit:
        """Return credit from which nothing is learned."""
        return Credit(None)


@dataclass(frozen=True, slots=True)
class Answered:
    """A message that has crossed a cut, and the answer to it.

    Attributes:
        h: the activation, ``(B, ...)``, detached.
        gradient: of it, ``(B, ...)``, in per-example units.
        loss: of each example, ``(B,)``, where the criterion returns these.
        output_error: ``(B, ...)``, per-example units, where the rule needs it.
    """

    h: Tensor
    gradient: Tensor
    loss: Tensor | None = None
    output_error: Tensor | None = None


class _Named(list[Tensor]):
    """Parameters as a list that also knows their names, as engines hand them to optimizer factories."""

    def __init__(self, named: Iterable[tuple[str, Tensor]]) -> None:
        self._named = list(named)
        super().__init__(p for _, p in self._named)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and parameters, like the method of ``nn.Module``."""
        yield from self._named


def make_optimizers(factory: OptimizerFactory, named: Iterable[tuple[str, Tensor]]) -> list[Optimizer]:
    """Return the optimizers of some parameters; of those that learn, and an empty list if none do.

    Raises:
        ConfigError: if the factory fails, or returns something else.
    """
    given = _Named((name, p) for name, p in named if p.requires_grad)
    if not given:
        return []
    try:
        made = factory(given)
    except (ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise ConfigError(
            f"the optimizer factory failed for {len(given)} parameters ({type(error).__name__}: {error}); give a function "
            "that takes a list of parameters, such as lambda params: torch.optim.Adam(params, 3e-4)"
        ) from error
    found = [o for o in (made if isinstance(made, Sequence) else [made]) if o is not None]
    for one in found:
        if not isinstance(one, Optimizer):
            raise ConfigError(
                f"the optimizer factory returned {brief(one)}, expected a torch.optim.Optimizer"
            )
    return found


def timed_step(optimizers: Sequence[Optimizer], clock: Clock) -> tuple[Any, Any]:
    """Step optimizers with gradients of zero, so that the weights stay as they are; return the marks around that."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.zero_()
    start = clock.mark()
    for optimizer in optimizers:
        try:
            optimizer.step()
        except TypeError as error:
            raise ConfigError(
                f"{type(optimizer).__name__} needs a closure, which no engine can give it; use another optimizer"
            ) from error
    return start, clock.mark()


def rule_cost(
    rule: Rule,
    units: Units,
    answered: Answered,
    info: Info,
    factory: OptimizerFactory,
    repeats: int,
    clock: Clock,
) -> dict[str, float]:
    """Return the seconds of a rule, medians of some repeats, as ``credit_s``, ``observe_s`` and ``local_s``.

    It is asked and learns as in a stage: with a guard that looks at what crosses, and without what it left pending, which is
    outdated when an answer comes late. An update counts where the rule learns.

    Args:
        rule: bound, so it knows its name.
        units: of the network.
        answered: a message and its answer.
        info: what is known of the batch.
        factory: makes the optimizer.
        repeats: how often it is measured.
        clock: of the device.

    Raises:
        ContextError: if the rule lacks what it needs to know.
    """
    instruments = Instruments(Guard())
    port = Port(rule, units, instruments)
    optimizers = make_optimizers(factory, rule.named_parameters())
    batch = Batch(info)
    kept: list[list[Any]] = []
    learns_alone = False
    for turn in range(_WARM_UP + repeats):
        marks: list[Any] = [clock.mark()]
        credit = port.credit(answered.h, info)
        instruments.check_crossing(rule.name, answered.h, credit.delta)
        marks.append(clock.mark())
        learns_alone = credit.loss is not None
        if credit.loss is not None:
            credit.loss.backward()
        marks.append(clock.mark())
        marks += timed_step([] if rule.learns_from_messages else optimizers, clock)
        flight = InFlight(rule.name, batch, answered.h, credit)
        message = Message(answered.gradient, answered.loss, answered.output_error)
        marks.append(clock.mark())
        if rule.listens:
            port.receive(flight, message)
            port.observe(flight, version=1)  # another than that of the flight: what is pending is outdated
        marks.append(clock.mark())
        marks += timed_step(optimizers if rule.learns_from_messages else [], clock)
        rule.zero_grad()
        if turn >= _WARM_UP:
            kept.append(marks)
    instruments.flush()
    clock.settle()

    def median_s(*spans: tuple[int, int]) -> float:
        return statistics.median(sum(clock.seconds(marks[a], marks[b]) for a, b in spans) for marks in kept)

    return {
        "credit_s": median_s((0, 1)),
        "local_s": median_s((1, 2), (3, 4)) if learns_alone else 0.0,
        "observe_s": median_s((5, 6), (7, 8)) if rule.listens else 0.0,
    }

"""What a stage costs: seconds of its passes, and bytes that it sends and holds.

Costs are those of a whole batch. A schedule that cuts batches into microbatches asks for the cost of one of them: of
each pass a part does not depend on the number of examples (calls, launches, reading the weights), the rest does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from ..core import ConfigError

__all__ = ["StageCost", "total_cost"]


@dataclass(frozen=True, slots=True)
class StageCost:
    """Seconds and bytes of a stage, or of a module, for one batch.

    Attributes:
        forward_s: seconds of the forward pass.
        backward_s: seconds of the backward pass, for the gradients of inputs and weights together.
        optimizer_s: seconds of an update.
        output_bytes: of the activation that crosses to the stage above, uncompressed; its gradient has as many.
        credit_s: seconds of the rule at its end to give credit, 0 without one.
        observe_s: seconds of this rule to learn from a message, its backward pass and its update included.
        local_s: seconds of this rule to learn from a loss of its own, in every step.
        held_bytes: bytes that autograd holds from a forward pass to its backward pass.
        parameter_bytes: bytes of the parameters, or of their gradients.
        backward_input_s: the part of ``backward_s`` for the gradients of the inputs; None for a half.
        forward_call_s, backward_call_s: the part of a pass that does not depend on the number of examples.

    Raises:
        ConfigError: if a figure is negative or no number.
    """

    forward_s: float
    backward_s: float
    optimizer_s: float = 0.0
    output_bytes: float = 0.0
    credit_s: float = 0.0
    observe_s: float = 0.0
    local_s: float = 0.0
    held_bytes: float = 0.0
    parameter_bytes: float = 0.0
    backward_input_s: float | None = None
    forward_call_s: float = 0.0
    backward_call_s: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "backward_input_s" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ConfigError(f"{field.name}={value!r}: expected a number from 0")

    @property
    def step_s(self) -> float:
        """Seconds of a step of backpropagation: both passes and the update."""
        return self.forward_s + self.backward_s + self.optimizer_s

    @property
    def decoupled_s(self) -> float:
        """Seconds of a step with the rule at its end, if each message is sent."""
        return self.step_s + self.credit_s + self.observe_s + self.local_s

    def microbatch(self, count: int) -> StageCost:
        """Return the cost of one of ``count`` equal parts of the batch; an update costs as much as before.

        >>> cost = StageCost(10.0, 20.0, output_bytes=100, forward_call_s=2.0)
        >>> part = cost.microbatch(4)
        >>> part.forward_s, part.backward_s, part.output_bytes
        (4.0, 5.0, 25.0)
        """
        if count < 1:
            raise ConfigError(f"{count} microbatches: expected 1 or more")
        forward_s = _part(self.forward_s, self.forward_call_s, count)
        backward_s = _part(self.backward_s, self.backward_call_s, count)
        scale = backward_s / self.backward_s if self.backward_s else 1.0
        return replace(
            self,
            forward_s=forward_s,
            backward_s=backward_s,
            backward_input_s=None if self.backward_input_s is None else self.backward_input_s * scale,
            output_bytes=self.output_bytes / count,
            held_bytes=self.held_bytes / count,
            credit_s=self.credit_s / count,
            observe_s=self.observe_s / count,
            local_s=self.local_s / count,
        )

    def scaled(self, speed: float) -> StageCost:
        """Return the cost on a machine that is ``speed`` times as fast; bytes remain.

        >>> StageCost(10.0, 20.0, output_bytes=100).scaled(2.0).step_s
        15.0
        """
        if not 0 < speed < math.inf:
            raise ConfigError(
                f"speed {speed:g}: expected a number over 0, 1 for the machine that was profiled"
            )
        times = {f.name: getattr(self, f.name) for f in fields(self) if f.name.endswith("_s")}
        return replace(self, **{name: None if t is None else t / speed for name, t in times.items()})


def total_cost(parts: Iterable[StageCost]) -> StageCost:
    """Return the cost of a stage that is made of parts: sums, except for what is at its end (output and rule).

    Raises:
        ConfigError: if there is none.
    """
    given = list(parts)
    if not given:
        raise ConfigError("a stage of no modules: expected one or more")
    sums = {
        name: sum(getattr(part, name) for part in given)
        for name in (
            "forward_s",
            "backward_s",
            "optimizer_s",
            "held_bytes",
            "parameter_bytes",
            "forward_call_s",
            "backward_call_s",
        )
    }
    known = [part.backward_input_s for part in given]
    inputs = None if None in known else sum(value for value in known if value is not None)
    return replace(given[-1], backward_input_s=inputs, **sums)


def _part(seconds: float, call_s: float, count: int) -> float:
    fixed = min(call_s, seconds)
    return fixed + (seconds - fixed) / count

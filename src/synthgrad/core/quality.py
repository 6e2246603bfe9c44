"""How good is the credit? Quality per interface, and the guard against numbers that are not finite."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import ConfigError, DivergedError
from .given import check_whole

__all__ = ["Guard", "Monitor", "Quality", "is_finite", "quality"]


@dataclass(frozen=True, slots=True)
class Quality:
    """Agreement between a credit and the message that came back for it.

    Attributes:
        cosine: cosine of the angle between the two, over the whole batch; 1 is perfect, 0 unrelated.
        relative_error: norm of the difference over the norm of the true message; 0 is perfect,
            1 is what a credit of zero gives.
        sign_agreement: share of the non-zero elements of the message whose sign the credit has.
    """

    cosine: float
    relative_error: float
    sign_agreement: float


def _measure(delta: Tensor, gradient: Tensor) -> Tensor:
    """Return ``(3,)`` float32: cosine, relative error, sign agreement. Stays on the device."""
    a, b = delta.detach().float().flatten(), gradient.detach().float().flatten()
    tiny = torch.finfo(torch.float32).tiny
    # Rescaled first: late in training gradients are small enough for their squares to underflow.
    a_max, b_max = a.abs().amax().clamp_min(tiny), b.abs().amax().clamp_min(tiny)
    cosine = (a / a_max) @ (b / b_max) / ((a / a_max).norm() * (b / b_max).norm()).clamp_min(tiny)
    relative = ((a - b) / b_max).norm() / (b / b_max).norm().clamp_min(tiny)
    moves = b != 0
    signs = ((a.sign() == b.sign()) & moves).sum() / moves.sum().clamp_min(1)
    return torch.stack((cosine, relative, signs))


def quality(delta: Tensor, gradient: Tensor) -> Quality:
    """Compare a credit with the message that came back, both of any one shape and unit.

    >>> import torch
    >>> quality(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])).sign_agreement
    0.5
    """
    return Quality(*(float(v) for v in _measure(delta, gradient).tolist()))


@dataclass
class Monitor:
    """Measures, every so many messages, how well each interface's credit agrees with the message.

    Args:
        every: measure one message in this many at each interface; 1 measures all.
        seen: messages counted so far, by interface; what a resumed run gives back.

    In the plain loop: ``net.monitor = Monitor(every=50)``. Engines take it as ``monitor=``.
    """

    every: int = 50
    seen: dict[str, int] = field(default_factory=dict[str, int], repr=False)
    _kept: dict[str, list[Tensor]] = field(default_factory=dict[str, "list[Tensor]"], repr=False)

    def __post_init__(self) -> None:
        check_whole("every", self.every, 1, "number of messages of which one is measured")

    def due(self, name: str) -> bool:
        """Count a message at this interface; return whether it is one to measure."""
        seen = self.seen.get(name, 0)
        self.seen[name] = seen + 1
        return seen % self.every == 0

    def record(self, name: str, delta: Tensor | None, gradient: Tensor) -> None:
        """Count a message and measure it if it is due. Does not wait for the device."""
        if self.due(name) and delta is not None and delta.numel():
            self._kept.setdefault(name, []).append(_measure(delta, gradient))

    def collect(self) -> dict[str, Quality]:
        """Return the mean over what was measured since the last call, by interface, and start anew."""
        kept, self._kept = self._kept, {}
        return {
            name: Quality(*(float(v) for v in torch.stack(rows).mean(0).tolist()))
            for name, rows in kept.items()
        }


class Guard:
    """Looks for numbers that are not finite, before anything learns from them; names interface, direction and step.

    On a CPU the check is made at once. On an accelerator it is queued, so that no step waits for the device, and read
    every `every` steps: the error still names the step at which it happened.

    Args:
        every: steps between two looks at what is queued on an accelerator.
        skip: go on in place of stopping: what is not finite is not learned from, and counted. Every step then waits for
            the device.

    Attributes:
        skipped: how often that has happened, by interface (or ``"loss"``).
    """

    def __init__(self, every: int = 50, *, skip: bool = False) -> None:
        self.every = every
        self.skip = skip
        self.skipped: Counter[str] = Counter()
        self._queue: list[tuple[str, int, str, Tensor]] = []

    @classmethod
    def of(cls, guard: bool | Guard, *, skips: bool = True) -> Guard | None:
        """Return the guard that an engine was asked for; None for none.

        Args:
            guard: True for one that stops, False for none, or a guard.
            skips: can the engine leave out what is not finite, and go on?

        Raises:
            ConfigError: if it cannot, and the guard is to.
        """
        if isinstance(guard, Guard):
            if guard.skip and not skips:
                raise ConfigError(
                    "this engine cannot go on without a step that is not finite; use guard=True, or the in-process, "
                    "locked or stages engine with Guard(skip=True)"
                )
            return guard
        if not isinstance(guard, bool):
            raise ConfigError(f"guard={guard!r}: expected True, False, or a Guard such as Guard(skip=True)")
        return cls() if guard else None

    def check(self, where: str, step: int, value: Tensor, what: str = "message") -> bool:
        """Note ``value``, detached; return whether it is finite, as far as is known.

        Raises:
            DivergedError: if it, or one noted earlier, is not finite, and steps are not to be skipped.
        """
        if value.is_cpu or self.skip:
            return is_finite(value) or self._bad(where, step, what)
        if self._queue and step - self._queue[0][1] >= self.every:
            self.flush()
        self._queue.append((where, step, what, value.isfinite().all()))
        return True

    def check_crossing(self, where: str, step: int, h: Tensor, delta: Tensor | None) -> bool:
        """Note an activation and the credit for it, of one shape, in the same way."""
        if delta is None:
            return self.check(where, step, h, "activation")
        at_once = (h.is_cpu or self.skip) and h.dtype == delta.dtype
        # One pass over both: a product with something that is not finite is not finite either.
        if at_once and math.isfinite(torch.dot(h.reshape(-1), delta.reshape(-1)).item()):
            return True
        return self.check(where, step, h, "activation") and self.check(where, step, delta, "credit")

    def flush(self) -> None:
        """Read what is queued.

        Raises:
            DivergedError: if any of it was not finite.
        """
        queue, self._queue = self._queue, []
        if not queue:
            return
        found = torch.stack([fine for *_, fine in queue]).tolist()
        for (where, step, what, _), fine in zip(queue, found, strict=True):
            if not fine:
                raise DivergedError(where, step, what)

    def _bad(self, where: str, step: int, what: str) -> bool:
        if not self.skip:
            raise DivergedError(where, step, what)
        self.skipped[where] += 1
        return False


def is_finite(value: Tensor) -> bool:
    """Is every element finite? Waits for the device. A sum tells in one pass, unless it overflows itself."""
    return math.isfinite(value.sum().item()) or bool(value.isfinite().all())

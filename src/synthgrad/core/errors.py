"""The errors that synthgrad raises: each says what was given, what was expected, and what to do."""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "ContextError",
    "CutError",
    "DataError",
    "DivergedError",
    "ShapeError",
    "StageError",
    "SynthgradError",
]


class SynthgradError(Exception):
    """Base of every error that the package raises on purpose."""


class CutError(SynthgradError, ValueError):
    """A cut that cannot be made: unknown name, called twice or never, crossed by a skip connection."""


class ContextError(SynthgradError, ValueError):
    """The context that a rule needs (labels, say) is missing or does not fit."""


class ShapeError(SynthgradError, ValueError):
    """A message has another shape or dtype than the interface was built for."""


class ConfigError(SynthgradError, ValueError):
    """A setting is out of its range or unknown."""


class DataError(SynthgradError, ValueError):
    """A data set is missing, damaged, empty or holds values that cannot be trained on."""


class DivergedError(SynthgradError, RuntimeError):
    """Training met a number that is not finite.

    Attributes:
        where: name of the interface (or ``"loss"``, or of the module whose gradient it is).
        step: the step, counted from 0, at which it was met.
        what: ``"activation"`` (on its way up), ``"credit"`` or ``"message"`` (on its way down), ``"gradient"`` of a
            module's parameters, or ``"loss"``.
    """

    def __init__(self, where: str, step: int, what: str = "message") -> None:
        self.where = where
        self.step = step
        self.what = "loss" if where == "loss" else what
        named = f"the {what} at interface '{where}'"
        if where == "loss":
            named = "the loss"
        elif what == "gradient":
            named = f"the gradient of module '{where}'"
        super().__init__(
            f"diverged: {named} was not finite at step {step}; "
            "lower the learning rate, or check the data for NaN"
        )


class StageError(SynthgradError, RuntimeError):
    """A stage of distributed training has stopped, or what came from it was not what had been agreed."""

"""A stage that fails tells the others why, through the store that they have met in."""

from __future__ import annotations

from ...core import StageError
from .transport import Clock, Store

__all__ = ["Alarm"]

_CAUSE = "cause"

#: A cause is read a moment after a link has broken: the process that broke it may still be about to tell.
_PATIENCE_S = 3.0


class Alarm:
    """The cause of the first failure, known to all.

    Args:
        store: shared by all processes.
        clock: of this process.
        who: this process, for the others' errors.
    """

    def __init__(self, store: Store, clock: Clock, who: str) -> None:
        self._store = store
        self._clock = clock
        self._who = who

    def ring(self, error: BaseException) -> None:
        """Tell the others; the first cause stays. Never raises: something has failed already."""
        if isinstance(error, StageError):
            return  # it is the echo of another's
        lines = str(error).splitlines()
        text = f"{self._who} stopped: {type(error).__name__}: {lines[0] if lines else ''}"
        try:
            self._store.compare_set(_CAUSE, "", text)
        except (RuntimeError, OSError):
            return  # the process that holds the store is gone, and whoever waits for it will see that

    def cause(self) -> str | None:
        """Return why some process has stopped; None as far as is known."""
        try:
            return self._store.get(_CAUSE) if self._store.check(_CAUSE) else None
        except (RuntimeError, OSError):
            return None

    def check(self) -> None:
        """Stop if another process has.

        Raises:
            StageError: with the cause.
        """
        cause = self.cause()
        if cause is not None:
            raise StageError(cause)

    def broken(self, link: str, error: BaseException) -> StageError:
        """Return the error for a link that broke: with its cause, if that gets known in a moment."""
        until = self._clock.now() + _PATIENCE_S
        while self._clock.now() < until:
            cause = self.cause()
            if cause is not None:
                return StageError(cause)
            self._clock.sleep(0.05)
        lines = str(error).splitlines()
        return StageError(
            f"{link} broke and nobody has said why; look at the output of that process "
            f"({type(error).__name__}: {lines[0][:200] if lines else ''})"
        )

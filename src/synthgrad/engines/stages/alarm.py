"""Finds out why a run has stopped, so that all stages raise one sentence about the stage and rank at
fault.
"""

from __future__ import annotations

from ...core import StageError
from .layout import RankLayout
from .transport import BrokenLine, Clock, Peers

__all__ = ["Alarm"]

_CAUSE = "cause"

#: Parts of the messages of gloo's errors during a step, in groups that average over replicas.
_OF_GLOO = ("third_party/gloo", "Application timeout caused pair closure")

#: How long to look for a cause after a link has broken, in seconds: the process at fault may still publish it.
_PATIENCE_S = 1.5

#: The time between two looks, in seconds. A power of two, so that virtual times stay exact.
_POLL_S = 1 / 64

#: A process that is alive is never silent for longer than this, in seconds.
_SILENT_S = 1.0


class Alarm:
    """The cause of the first failure, known to all ranks.

    Args:
        peers: what the ranks publish and know of each other.
        clock: the clock of this process.
        layout: the place of this process.
    """

    def __init__(self, peers: Peers, clock: Clock, layout: RankLayout) -> None:
        self._peers = peers
        self._clock = clock
        self._layout = layout
        self._rank = layout.rank(layout.stage)
        self._others = [k for k in range(layout.num_stages * layout.num_replicas) if k != self._rank]

    @property
    def who(self) -> str:
        """Stage and rank of this process, for errors."""
        return self.name(self._rank)

    def name(self, rank: int) -> str:
        """Return stage and rank of a process, for errors."""
        return f"stage {rank // self._layout.num_replicas} (rank {rank})"

    def ring(self, error: BaseException) -> None:
        """Publish why this process stops. The first cause that is published stays."""
        if self.cause() is not None:
            return  # another process has failed first, and this error is a consequence
        lines = str(error).splitlines()
        self._peers.publish(
            _CAUSE, f"{self.who} stopped: {type(error).__name__}: {lines[0] if lines else ''}"
        )

    def cause(self) -> str | None:
        """Return why a process has stopped; None if none is known to have stopped."""
        lookup = self._peers.lookup(_CAUSE)
        if lookup is not None:
            return lookup
        for rank in self._others:
            status = self._peers.status(rank)
            if status.is_gone:
                return (
                    f"{self.name(rank)} has ended without a word {status.silent_s:.1f} s ago: its process was killed, or it "
                    "crashed"
                )
        return None

    def check(self) -> None:
        """Stop if another process has stopped.

        Raises:
            StageError: with the cause.
        """
        cause = self.cause()
        if cause is not None:
            raise StageError(cause)

    def blame(self, sentence: str) -> StageError:
        """Publish a cause, and return an error with it.

        If a cause was published before, the error has that one.
        """
        if self._peers.lookup(_CAUSE) is None:
            self._peers.publish(_CAUSE, sentence)
        return StageError(self._peers.lookup(_CAUSE) or sentence)

    def late_error(self, rank: int, timeout_s: float) -> StageError:
        """Return the error for a process that does not answer.

        It blames the process at the end of the chain of waits.

        Args:
            rank: the rank of the process.
            timeout_s: how long this process has waited for it, in seconds.
        """
        seen = [self._rank]
        while rank not in seen and (following := self._peers.status(rank).waits_for) is not None:
            if self._is_silent(rank, timeout_s):
                break
            seen.append(rank)
            rank = following
        if rank in seen:
            one, two = sorted((rank, seen[-1]))
            return self.blame(
                f"{self.name(one)} and {self.name(two)} have waited for each other for {timeout_s:g} s: all processes must call "
                "step, predict and close in the same order"
            )
        if self._is_silent(rank, timeout_s):
            why = "it is frozen, or cut off from the network"
        elif self._peers.status(rank).has_left:
            why = "it has closed its engine already; all processes must call step, predict and close in the same order"
        else:
            why = "it lives, so a step takes longer than timeout_s (give a longer one), or it has left its loop without close()"
        return self.blame(f"{self.name(rank)} has not answered within {timeout_s:g} s: {why}")

    def missing_error(self, what: str, timeout_s: float) -> StageError:
        """Return the error for a wait for all other ranks."""
        for rank in self._others:
            if self._is_silent(rank, timeout_s):
                return self.late_error(rank, timeout_s)
        return self.blame(
            f"{what}: not all stages have come within {timeout_s:g} s ({self.who} has); all processes must call it"
        )

    def broken_error(self, link: str, error: BaseException, timeout_s: float) -> StageError:
        """Return the error for a link that broke, with its cause if one is published within a moment.

        Args:
            link: what broke, in words.
            error: the error of the transport.
            timeout_s: how long a stage waits for another, in seconds.
        """
        until = self._clock.now() + _PATIENCE_S
        while self._clock.now() < until:
            cause = self.cause()
            if cause is not None:
                return StageError(cause)
            for rank in self._others:
                if self._is_silent(rank, timeout_s):
                    return self.late_error(rank, timeout_s)
            self._clock.sleep(_POLL_S)
        lines = str(error).splitlines()
        return self.blame(
            f"{link} broke at {self.who}, and the processes at both ends live ({type(error).__name__}: {lines[0][:200] if lines else ''}); "
            "look at the network between them"
        )

    def explain(self, error: BaseException, timeout_s: float) -> BaseException:
        """Return the error to raise for an error.

        For an error of a transport this is the cause, as far as it is known; any other error is returned
        unchanged.
        """
        if isinstance(error, BrokenLine):
            if error.is_late and self.cause() is None:
                return self.late_error(error.peer, timeout_s)
            return self.broken_error(f"the link to {self.name(error.peer)}", error, timeout_s)
        of_a_group = type(error).__name__.startswith("Dist") or any(words in str(error) for words in _OF_GLOO)
        if isinstance(error, RuntimeError) and not isinstance(error, StageError) and of_a_group:
            return self.broken_error("the connection of the replicas", error, timeout_s)
        return error

    def _is_silent(self, rank: int, timeout_s: float) -> bool:
        return self._peers.status(rank).silent_s > min(_SILENT_S, timeout_s / 2)

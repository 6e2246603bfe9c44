"""Workers that are started anew when a method has failed in them, so that the others can go on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ...wan import Network
from ..workers import Workers, WorkersError
from .cases import Case
from .network import Size

__all__ = ["Session", "started"]


def started(size: Size, data_dir: str | None, network: Network | None, timeout_s: float) -> Workers:
    """Return workers that are ready to build programs; see `Session` for the arguments."""
    settings = {"size": asdict(size), "data_dir": data_dir, "timeout_s": timeout_s}
    return Workers("pipeline.worker", settings, size.stages, timeout_s, network)


class Session:
    """Runs methods in worker processes; use as a context.

    A method that fails leaves others of its processes waiting in the middle of an exchange: all of them are ended,
    started again, and the methods that had been built are built again, with their weights as at the beginning.

    Args:
        size: of what is trained.
        lr: learning rate.
        data_dir: directory of data files, or None.
        network: with the link between the processes; None for the loopback device.
        timeout_s: how long a worker waits for another, in seconds.

    Attributes:
        failed: methods that failed, and why.
        num_starts: how often workers were started.
    """

    def __init__(
        self, size: Size, lr: float, data_dir: str | None, network: Network | None, timeout_s: float = 120.0
    ) -> None:
        self._size = size
        self._lr = lr
        self._data_dir = data_dir
        self._network = network
        self._timeout_s = timeout_s
        self._workers: Workers | None = None
        self._built: list[Case] = []
        self._broken: WorkersError | None = None
        self.failed: dict[Case, str] = {}
        self.num_starts = 0

    def build(self, case: Case) -> bool:
        """Make a method ready to run; return whether that went well."""
        if (
            self._ask(case, {"do": "build", "name": _name(case), "case": asdict(case), "lr": self._lr})
            is None
        ):
            return False
        self._built.append(case)
        return True

    def run(self, case: Case, warm: int, steps: int, expected_s: float = 0.0) -> list[dict[str, Any]] | None:
        """Run steps of a method that was built; return the answers of its processes, None if it has failed."""
        command = {"do": "run", "name": _name(case), "warm": warm, "steps": steps}
        return self._ask(case, command, self._timeout_s + 20 * expected_s)

    def learn(self, case: Case, lr: float, goal: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Train a method anew; return when it was accurate enough, or why it was not trained."""
        known = dict(self.failed)
        command = {"do": "learn", "case": asdict(case), "lr": lr, "goal": goal}
        found = self._ask(case, command, timeout_s)
        if found is None:
            reason = self.failed[case]
            self.failed = known  # its steps have been timed
            return {"learn_error": reason}
        return found[0]

    def forget(self) -> None:
        """End the processes, and with them all that was built."""
        self._built = []
        if self._workers is not None:
            self._workers.stop()
            self._workers = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        if error is not None and self._workers is not None:
            self._workers.kill()  # they may be in the middle of something, as when a user interrupts
        self.forget()

    def _ask(
        self, case: Case, command: dict[str, Any], timeout_s: float | None = None
    ) -> list[dict[str, Any]] | None:
        ranks = [0] if case.is_alone else range(self._size.stages)
        try:
            return self._ready(case).ask(command, ranks, timeout_s)
        except WorkersError as error:
            self.failed[case] = str(error)
            self._built = [other for other in self._built if other != case]
            if self._workers is not None:
                self._workers.kill()
                self._workers = None
            return None

    def _ready(self, case: Case) -> Workers:
        """Return workers in which all that was built is there, but for those that fail at it now."""
        while self._workers is None:
            if self._broken is not None:
                raise self._broken  # once is enough: what does not start now will not start for the next either
            self.num_starts += 1
            try:
                self._workers = started(self._size, self._data_dir, self._network, self._timeout_s)
            except WorkersError as error:
                self._broken = error
                raise
            built, self._built = self._built, []
            for other in built:
                if not self.build(other):
                    self._built += [k for k in built if k not in self._built and k != other]
                    break
        if case in self.failed:
            raise WorkersError(self.failed[case])
        return self._workers


def _name(case: Case) -> str:
    return "/".join(str(value) for value in asdict(case).values())

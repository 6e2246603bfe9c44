"""Worker processes: started together, they do what they are told, a line of JSON at a time.

A worker waits in a read of its standard input, so that it takes no processor while others have their turn. Its standard
output is the answers' alone; what libraries print goes to standard error, of which the last line is told if it ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...core.errors import SynthgradError
from ..wan import Network
from .base import reason_of

__all__ = ["Workers", "WorkersError", "serve"]

#: What a worker can do, by name; each takes the other entries of a command and returns the answer.
Deeds = Mapping[str, Callable[..., dict[str, Any]]]

_PARTING_S = 5.0
_PORT = 29_500  # inside a network of our own, where nobody else is


class WorkersError(SynthgradError, RuntimeError):
    """A worker failed or did not answer: all of them are void."""


class Workers:
    """Processes that know of each other as ranks do; use as a context, or `stop` them.

    Args:
        module: of this package, which calls `serve` when it is run.
        settings: what `serve` hands to the module.
        num: how many.
        timeout_s: how long the first answer may take, and every other one of which nothing else is said, in seconds.
        network: with a link between them; None for the loopback device.

    Raises:
        WorkersError: if one of them does not come up.
    """

    def __init__(
        self,
        module: str,
        settings: Mapping[str, Any],
        num: int,
        timeout_s: float,
        network: Network | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._processes: list[subprocess.Popen[bytes]] = []
        self._unread = [b""] * num
        self._said = [tempfile.TemporaryFile() for _ in range(num)]  # noqa: SIM115 - `stop` closes them
        command = [sys.executable, "-m", f"{__package__}.{module}", json.dumps(settings)]
        port = _PORT if network is not None else _free_port()
        try:
            for rank in range(num):
                self._processes.append(
                    subprocess.Popen(
                        command if network is None else network.command(rank, command),
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=self._said[rank],
                        bufsize=0,
                        env=_environment(rank, num, network, port),
                        start_new_session=True,  # Ctrl-C is for us, and we end them
                    )
                )
            self._answers(range(num), timeout_s)
        except BaseException:
            self.kill()
            raise

    def ask(
        self, command: Mapping[str, Any], ranks: Sequence[int] | None = None, timeout_s: float | None = None
    ) -> list[dict[str, Any]]:
        """Have all workers, or some, do something at the same time; return their answers.

        Raises:
            WorkersError: for the first that fails, or does not answer in time. They cannot be used after it: others
                may wait for the one that failed.
        """
        line = json.dumps(command).encode() + b"\n"
        ranks = range(len(self._processes)) if ranks is None else ranks
        for rank in ranks:
            stdin = self._processes[rank].stdin
            assert stdin is not None
            try:
                stdin.write(line)
            except BrokenPipeError:
                raise self._ended(rank) from None
        return self._answers(ranks, self._timeout_s if timeout_s is None else timeout_s)

    def stop(self) -> None:
        """End the processes. Again does nothing."""
        processes, self._processes = self._processes, []
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        until = time.monotonic() + _PARTING_S
        for process in processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()
        for file in self._said:
            file.close()

    def kill(self) -> None:
        """End the processes at once: one of them has failed, and others may wait for it."""
        for process in self._processes:
            process.kill()
        self.stop()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *args: object) -> None:
        self.stop()

    def _answers(self, ranks: Sequence[int], timeout_s: float) -> list[dict[str, Any]]:
        until = time.monotonic() + timeout_s
        found: dict[int, dict[str, Any]] = {}
        while len(found) < len(ranks):
            files = {self._stdout(rank): rank for rank in ranks if rank not in found}
            ready, _, _ = select.select(list(files), (), (), max(0.0, until - time.monotonic()))
            if not ready:
                names = ", ".join(str(rank) for rank in files.values())
                raise WorkersError(f"no answer of process {names} within {timeout_s:g} s")
            for file in ready:
                rank = files[file]
                answer = self._read(rank, file)
                if answer is None:
                    continue
                if "error" in answer:
                    # One that has ended is the cause of what others say.
                    ended = [other for other in ranks if self._processes[other].poll() is not None]
                    raise (
                        self._ended(ended[0]) if ended else WorkersError(f"process {rank}: {answer['error']}")
                    )
                found[rank] = answer
        return [found[rank] for rank in ranks]

    def _stdout(self, rank: int) -> int:
        stdout = self._processes[rank].stdout
        assert stdout is not None
        return stdout.fileno()

    def _read(self, rank: int, file: int) -> dict[str, Any] | None:
        """Return the answer that is there; None if it is not complete."""
        data = os.read(file, 65_536)
        if not data:
            raise self._ended(rank)
        self._unread[rank] += data
        line, end, rest = self._unread[rank].partition(b"\n")
        if not end:
            return None
        self._unread[rank] = rest
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self, rank: int) -> WorkersError:
        status = self._processes[rank].wait()
        self._said[rank].seek(0)
        lines = self._said[rank].read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "without a word")
        return WorkersError(f"process {rank} ended (exit status {status}): {last[:200]}")


def _environment(rank: int, num: int, network: Network | None, port: int) -> dict[str, str]:
    made = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num),
        "LOCAL_WORLD_SIZE": str(num),
        "MASTER_ADDR": "127.0.0.1" if network is None else network.hosts[0],
        "MASTER_PORT": str(port),
        # They import what we have imported, whatever our path is.
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
    }
    if network is not None:
        made["GLOO_SOCKET_IFNAME"] = network.interface
    inherited = {k: v for k, v in os.environ.items() if network is not None or k != "GLOO_SOCKET_IFNAME"}
    return inherited | made


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# -- in a worker ------------------------------------------------------------------------------------------


def serve(set_up: Callable[[dict[str, Any]], Deeds]) -> None:
    """Be a worker until standard input ends.

    Args:
        set_up: gets ready, with the others if need be; takes the settings, and returns what the worker can do.
    """
    if sys.platform == "linux":
        # If the program that measures is killed, nobody reads the answers any more (PR_SET_PDEATHSIG).
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(deed: Callable[[], dict[str, Any]]) -> bool:
        try:
            value = deed()
        except Exception as error:  # the program that asked goes on without it
            value = {"error": reason_of(error)}
        answers.write(json.dumps(value) + "\n")
        answers.flush()
        return "error" not in value

    deeds: dict[str, Callable[..., dict[str, Any]]] = {}

    def ready() -> dict[str, Any]:
        deeds.update(set_up(json.loads(sys.argv[1])))
        return {}

    if answer(ready):
        for line in sys.stdin:
            command: dict[str, Any] = json.loads(line)
            answer(lambda command=command: deeds[command.pop("do")](**command))
    # Threads may wait for processes that are gone already: nothing here is worth an orderly end.
    sys.stderr.flush()
    os._exit(0)

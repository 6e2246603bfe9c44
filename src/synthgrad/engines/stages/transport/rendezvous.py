"""How the processes of a process group connect with each other for one engine.

::

    1. each rank listens at its address, and writes into the store: greeting, address, a secret
    2. it reads what the others have written; another greeting is refused here
    3. it connects to all lower ranks, and sends their secret and its rank; higher ranks connect to it
    4. it stops listening

Only this module uses the store, in calls that cannot block for longer than the engine waits.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from torch._C._distributed_c10d import TCPStore
from torch.distributed import distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore, Store

from ....core import ConfigError, StageError
from .base import missing_rank_message, other_version_message
from .connections import Connections
from .timeout import call_with_timeout

__all__ = ["own_address", "own_store", "rendezvous"]

_T = TypeVar("_T")

#: How often to look into the store, in seconds.
_POLL_S = 0.01

#: The longest first line of a connection, in bytes.
_MOST_BYTES = 128


class _Rendezvous:
    """Connects one rank to all others.

    Args:
        store: the store of this engine, shared by all ranks.
        rank: the rank of this process.
        world_size: the number of processes.
        timeout_s: the timeout for the whole rendezvous, in seconds.
    """

    def __init__(self, store: Store, rank: int, world_size: int, timeout_s: float) -> None:
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._timeout_s = timeout_s
        self._until = time.perf_counter() + timeout_s
        self._secret = secrets.token_hex(16)
        self._ends: dict[int, socket.socket] = {}

    def run(self, greeting: str) -> dict[int, socket.socket]:
        """Return connections to all others, by rank."""
        listener = socket.create_server((own_address(self._store), 0), backlog=self._world_size + 16)
        try:
            host, port = listener.getsockname()[:2]
            card = {"greeting": greeting, "host": host, "port": port, "secret": self._secret}
            self._ask(lambda: self._store.set(str(self._rank), json.dumps(card)))
            cards = {k: self._card(k) for k in range(self._world_size) if k != self._rank}
            for rank, theirs in cards.items():
                if theirs["greeting"] != greeting:
                    raise ConfigError(other_version_message(rank, theirs["greeting"], self._rank, greeting))
            for rank in range(self._rank):
                self._ends[rank] = self._connect(rank, cards[rank])
            self._accept(listener)
        except BaseException:
            for end in self._ends.values():
                end.close()
            raise
        finally:
            listener.close()
        return self._ends

    def _ask(self, call: Callable[[], _T]) -> _T:
        return _asked(call, max(self._until - time.perf_counter(), 0.1), self._timeout_s)

    def _card(self, rank: int) -> dict[str, Any]:
        """Return what another rank has written into the store. Waits for it."""
        while not self._ask(lambda: self._store.check([str(rank)])):
            self._wait_for(rank)
        return json.loads(self._ask(lambda: self._store.get(str(rank))))

    def _wait_for(self, rank: int) -> None:
        if time.perf_counter() > self._until:
            raise StageError(missing_rank_message(rank, self._timeout_s))
        time.sleep(_POLL_S)

    def _connect(self, rank: int, card: dict[str, Any]) -> socket.socket:
        while True:
            try:
                left = max(self._until - time.perf_counter(), 0.1)
                end = socket.create_connection((card["host"], card["port"]), timeout=left)
                end.sendall(f"{card['secret']} {self._rank}\n".encode())
                return end
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise
                self._wait_for(rank)

    def _accept(self, listener: socket.socket) -> None:
        """Accept connections of all higher ranks. A stranger is disconnected, and keeps nobody waiting."""
        listener.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            said: dict[socket.socket, bytes] = {}
            try:
                while len(self._ends) < self._world_size - 1:
                    for key, _ in selector.select(_POLL_S):
                        if key.fileobj is listener:
                            end, _ = listener.accept()
                            end.setblocking(False)
                            said[end] = b""
                            selector.register(end, selectors.EVENT_READ)
                        else:
                            self._listen(key.fileobj, said, selector)
                    missing = set(range(self._rank + 1, self._world_size)) - set(self._ends)
                    if missing and time.perf_counter() > self._until:
                        self._wait_for(min(missing))
            finally:
                for end in said:
                    end.close()

    def _listen(self, end: Any, said: dict[socket.socket, bytes], selector: selectors.BaseSelector) -> None:
        data = b""
        with suppress(OSError):
            # One byte at a time, so as not to read past the first line: the rest is for the connection.
            data = end.recv(1)
        said[end] += data
        if data and not said[end].endswith(b"\n") and len(said[end]) < _MOST_BYTES:
            return
        selector.unregister(end)
        words = said.pop(end).decode(errors="replace").split()
        known = len(words) == 2 and secrets.compare_digest(words[0], self._secret) and words[1].isdecimal()
        rank = int(words[1]) if known else -1
        if self._rank < rank < self._world_size and rank not in self._ends:
            self._ends[rank] = end
        else:
            end.close()


def own_store(name: str, timeout_s: float) -> Store:
    """Return a part of the process group's store, over a connection of its own.

    A call that hangs on this connection does not block others from the store.

    Args:
        name: the name of the part.
        timeout_s: how long to wait for the store, in seconds.

    Raises:
        StageError: if it does not answer.
    """
    whole = distributed_c10d._get_default_store()  # pyright: ignore[reportPrivateUsage]
    while isinstance(whole, PrefixStore):
        whole = whole.underlying_store
    if isinstance(whole, TCPStore):
        whole = _asked(whole.clone, timeout_s, timeout_s)  # pyright: ignore
    return PrefixStore(name, whole)


def _asked(call: Callable[[], _T], left_s: float, timeout_s: float) -> _T:
    """Return the store's answer to a call."""
    holder = "torchrun" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else "rank 0"
    try:
        return call_with_timeout(call, left_s)
    except TimeoutError:
        raise StageError(
            f"{holder}, which holds the store of the process group, has not answered for {timeout_s:g} s: it is frozen, or "
            "cut off from the network"
        ) from None
    except (RuntimeError, OSError) as error:
        raise StageError(f"{holder}, which holds the store of the process group, has ended") from error


def rendezvous(store: Store, rank: int, world_size: int, greeting: str, timeout_s: float) -> Connections:
    """Connect with all other ranks. Blocks until all have come.

    Args:
        store: shared by all ranks, and used by nothing but this engine.
        rank: the rank of this process.
        world_size: the number of processes.
        greeting: a text that must be the same everywhere.
        timeout_s: how long to wait for the others, in seconds.

    Raises:
        ConfigError: if another rank has another greeting.
        StageError: naming a rank that does not come.
    """
    return Connections(_Rendezvous(store, rank, world_size, timeout_s).run(greeting))


def own_address(store: Store) -> str:
    """Return the address at which others reach this process.

    It is the address of gloo's device, or of the route to the store.
    """
    device = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        if device:
            with suppress(OSError):
                request = struct.pack("256s", device.encode()[:255])
                return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), 0x8915, request)[20:24])  # SIOCGIFADDR
        while isinstance(store, PrefixStore):
            store = store.underlying_store
        with suppress(OSError, AttributeError):
            probe.connect((store.host, store.port))  # pyright: ignore  # sends nothing
            return probe.getsockname()[0]
    return "127.0.0.1"

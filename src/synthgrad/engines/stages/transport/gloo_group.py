"""Gloo's groups, made without `torch.distributed.new_group`.

`new_group` is a call of all ranks that ends with a barrier in the store. A group of the ranks that need it, made of gloo's
own class, waits for these only, shares a device (a thread, a listening socket) with others, and is gone when nobody refers to
it any more. Its members find each other by what they tell as `Peers`, so a wait for one that is gone ends with the cause.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store

from .base import Peers, WaitLimit
from .rendezvous import own_address

__all__ = ["GlooDirection", "GlooGroup", "gloo_device"]

#: Of a receive that never comes.
_NO_TAG = (1 << 31) - 2

#: Its stubs lack most of it.
_Gloo: Any = dist.ProcessGroupGloo

#: How often a member looks for the others, in seconds.
_POLL_S = 0.005

_AT_ONCE = timedelta(milliseconds=1)


def gloo_device(store: Store) -> Any:
    """Return a device for groups: it listens at this process's address."""
    return _Gloo.create_device(hostname=own_address(store))


class _PeerStore(Store):
    """The store in which gloo's members look for each other, made of what peers tell."""

    def __init__(self, name: str, peers: Peers, check: Callable[[], None]) -> None:
        super().__init__()
        self._name = name
        self._peers = peers
        self._check = check

    def set(self, key: str, value: Any) -> None:  # bytes, whatever its stub says
        self._peers.publish(f"{self._name}/{key}", value.hex())

    def get(self, key: str) -> bytes:
        return bytes.fromhex(self._peers.lookup(f"{self._name}/{key}") or "")

    def check(self, keys: list[str]) -> bool:
        return all(self._peers.lookup(f"{self._name}/{key}") is not None for key in keys)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        while not self.check(keys):
            self._check()
            time.sleep(_POLL_S)


class GlooGroup:
    """Some ranks. Blocks until all of them have made it.

    Args:
        name: of the group, the same in all its ranks; differs between any two.
        peers: through which they find each other.
        ranks: members, in order.
        rank: of this process.
        device: see `gloo_device`.
        limit: of the wait for the others.

    Raises:
        StageError: if they do not come.
        RuntimeError: if they cannot be reached.
    """

    def __init__(
        self,
        name: str,
        peers: Peers,
        ranks: Sequence[int],
        rank: int,
        device: Any,
        limit: WaitLimit,
    ) -> None:
        options = _Gloo._Options()
        options._devices = [device]
        options._threads = 1
        options._timeout = timedelta(seconds=limit.timeout_s)
        self._others = [k for k, member in enumerate(ranks) if member != rank]
        self._group: Any = _Gloo(
            _PeerStore(name, peers, limit.check), list(ranks).index(rank), len(ranks), options
        )

    @property
    def _open(self) -> Any:
        if self._group is None:
            raise RuntimeError("the group is closed")
        return self._group

    def send(self, tensor: Tensor, dest: int, tag: int) -> dist.Work:
        """Post a send to a member by its place in the group."""
        return self._open.send([tensor], dest, tag)

    def receive(self, tensor: Tensor, source: int, tag: int) -> dist.Work:
        """Post a receive from a member by its place in the group."""
        return self._open.recv([tensor], source, tag)

    def allreduce(self, tensor: Tensor) -> dist.Work:
        """Begin to sum a tensor over all members, in place."""
        return self._open.allreduce([tensor])

    def broadcast(self, tensor: Tensor, source: int) -> dist.Work:
        """Begin to copy a tensor of one member into those of all, in place."""
        return self._open.broadcast(tensor, source)

    def abort(self) -> None:
        """End all that waits in the group, in this process.

        Gloo has one way to do so: a receive that times out closes the connections of its whole group.
        """
        if self._group is not None and self._others:
            with suppress(RuntimeError):
                self._group.recv([torch.empty(1)], self._others[0], _NO_TAG).wait(_AT_ONCE)

    def close(self) -> None:
        """Let go of the group. Its threads and connections end with the last reference."""
        self._group = None


class GlooDirection:
    """A direction between two ranks; see `Direction`.

    Args:
        group: of the two.
        peer: rank of the other one.
        is_lower: is the other one the lower rank?
    """

    def __init__(self, group: GlooGroup, peer: int, *, is_lower: bool) -> None:
        self._group = group
        self._place = 0 if is_lower else 1
        self.peer = peer

    def send(self, tensor: Tensor, tag: int) -> dist.Work:
        """See `Direction.send`."""
        return self._group.send(tensor, self._place, tag)

    def receive(self, tensor: Tensor, tag: int) -> dist.Work:
        """See `Direction.receive`."""
        return self._group.receive(tensor, self._place, tag)

    def abort(self) -> None:
        """See `Direction.abort`."""
        self._group.abort()

    def close(self) -> None:
        """See `Direction.close`."""
        self._group.close()

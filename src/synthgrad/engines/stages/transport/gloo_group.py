"""Gloo's process groups, created without `torch.distributed.new_group`.

`new_group` must be called by all ranks, and ends with a barrier in the store. A group that is created from
gloo's own class concerns only its members. It shares a device (a thread and a listening socket) with other
groups, and ends with its last reference. The members find each other through `Peers`, so a wait for a member
that is gone ends with the cause.
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

#: The tag of a receive that never completes.
_NO_TAG = (1 << 31) - 2

#: Typed as Any, since the stubs of this class are incomplete.
_Gloo: Any = dist.ProcessGroupGloo

#: How often a member looks for the others, in seconds.
_POLL_S = 0.005

_AT_ONCE = timedelta(milliseconds=1)


def gloo_device(store: Store) -> Any:
    """Return a gloo device for groups, which listens at this process's address."""
    return _Gloo.create_device(hostname=own_address(store))


class _PeerStore(Store):
    """The store in which gloo's members look for each other, on top of `Peers`."""

    def __init__(self, name: str, peers: Peers, check: Callable[[], None]) -> None:
        super().__init__()
        self._name = name
        self._peers = peers
        self._check = check

    def set(self, key: str, value: Any) -> None:  # the value is bytes, unlike in the stub
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
    """A group of some ranks. Creating it blocks until all of them have done so.

    Args:
        name: the name of the group, the same in all its ranks, and different from that of any other group.
        peers: through which the members find each other.
        ranks: the ranks of the members, in order.
        rank: the rank of this process.
        device: see `gloo_device`.
        limit: the limit of the wait for the others.

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
        """Post a send to a member, given by its position in the group."""
        return self._open.send([tensor], dest, tag)

    def receive(self, tensor: Tensor, source: int, tag: int) -> dist.Work:
        """Post a receive from a member, given by its position in the group."""
        return self._open.recv([tensor], source, tag)

    def allreduce(self, tensor: Tensor) -> dist.Work:
        """Start to sum a tensor over all members, in place."""
        return self._open.allreduce([tensor])

    def broadcast(self, tensor: Tensor, source: int) -> dist.Work:
        """Start to copy a tensor of one member into those of all, in place."""
        return self._open.broadcast(tensor, source)

    def abort(self) -> None:
        """End all waits in the group, in this process.

        Gloo has one way to do this: a receive that times out closes the connections of its whole group.
        """
        if self._group is not None and self._others:
            with suppress(RuntimeError):  # the timeout itself
                self._group.recv([torch.empty(1)], self._others[0], _NO_TAG).wait(_AT_ONCE)

    def close(self) -> None:
        """Release the group. Its threads and connections end with the last reference."""
        self._group = None


class GlooDirection:
    """A direction between two ranks; see `Direction`.

    Args:
        group: the group of the two ranks.
        peer: the rank of the other one.
        is_lower: whether the other one is the lower rank.
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

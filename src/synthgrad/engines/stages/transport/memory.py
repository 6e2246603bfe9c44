"""The transport in memory: ranks are threads of one process, with a virtual clock.

A run over a slow link therefore takes no more time than its computation. ``virtual.py`` decides which rank
runs when, and ``world.py`` when a parcel arrives.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....core import ConfigError, StageError
from ..layout import RankLayout
from .base import (
    HeaderCheck,
    PeerStatus,
    RawParcel,
    Transport,
    WaitLimit,
    missing_rank_message,
    other_version_message,
)
from .virtual import VirtualTime
from .world import Link, Pipe, World

__all__ = [
    "MemoryClock",
    "MemoryLine",
    "MemoryTransport",
    "RankOutcome",
    "outcomes_in_memory",
    "run_in_memory",
]

_PING_BYTES = 8

#: How often a rank checks whether the others have come, in seconds. A power of two, so that times stay exact.
_POLL_S = 1 / 64

#: A link without a delay, of unlimited rate.
_IDEAL = Link()


@dataclass(frozen=True, slots=True)
class RankOutcome:
    """The outcome of a program in one rank.

    Attributes:
        value: its return value; None if it raised.
        error: the error that it raised; None if it returned.
        trace: the traceback of the error, as text.
        time_s: the virtual time at which it ended.
    """

    value: Any = None
    error: BaseException | None = None
    trace: str = ""
    time_s: float = 0.0


def run_in_memory(
    num_ranks: int, program: Callable[..., Any], *args: Any, links: Link | Sequence[Link] = _IDEAL
) -> list[Any]:
    """Run a program in several ranks of this process, in virtual time; return its return values, by rank.

    ::

        def program(transport, net):
            with Stages(net(), criterion, adam, transport=transport) as stages:
                stages.module.register_forward_pre_hook(lambda *_: transport.clock.sleep(0.02))  # a step takes 20 ms
                ...

        run_in_memory(2, program, net, links=Link(delay_s=0.05))

    Exactly one rank runs at a time, always the one whose time is least (of two, the lower rank). Computing
    takes no time unless the program says so by ``transport.clock.sleep``; nothing ever really sleeps. Two
    runs are equal to the last bit. Times that are sums of powers of two, such as 1/64, are exact.

    Every rank has its own random numbers (of PyTorch on the CPU, and of Python's ``random``) and default
    dtype, which start with their present values. Everything else is shared by the ranks, so a program should
    create its own network.

    Args:
        num_ranks: the number of ranks, each a thread.
        program: called as ``program(transport, *args)`` in each.
        args: further arguments of the program.
        links: the links between ranks ``k`` and ``k + 1``, by ``k``; or one for all.

    Raises:
        ConfigError: if there is no rank, or the number of links is wrong.
        Exception: the error of a rank: the first that is not a `StageError` of ranks that stopped with it.

    >>> def program(transport):
    ...     transport.clock.sleep(0.5 * transport.rank)
    ...     total = transport.sum(torch.tensor(float(transport.rank)), lambda: None)
    ...     return total.item(), transport.clock.now()
    >>> run_in_memory(3, program)
    [(3.0, 1.0), (3.0, 1.0), (3.0, 1.0)]
    """
    found = outcomes_in_memory(num_ranks, program, *args, links=links)
    errors = [outcome.error for outcome in found if outcome.error is not None]
    if errors:
        # A rank that fails stops the others, and their errors only repeat the cause.
        raise min(errors, key=lambda error: isinstance(error, StageError))
    return [outcome.value for outcome in found]


def outcomes_in_memory(
    num_ranks: int, program: Callable[..., Any], *args: Any, links: Link | Sequence[Link] = _IDEAL
) -> list[RankOutcome]:
    """Run a program like `run_in_memory`, and return its outcome in every rank, errors included.

    Raises:
        ConfigError: if there is no rank, or the number of links is wrong.
    """
    world = World(num_ranks, links)
    found = [RankOutcome()] * num_ranks

    def served(rank: int) -> Callable[[], None]:
        def serve() -> None:
            try:
                transport: Transport = MemoryTransport(world, rank)
                value = program(transport, *args)
                found[rank] = RankOutcome(value, time_s=world.time.now(rank))
            except BaseException as error:
                found[rank] = RankOutcome(None, error, traceback.format_exc(), world.time.now(rank))
            world.ended[rank] = world.time.now(rank)

        return serve

    world.time.run([served(rank) for rank in range(num_ranks)])
    return found


@dataclass(frozen=True, slots=True)
class MemoryClock:
    """The virtual time of a rank; see `Clock`."""

    time: VirtualTime
    rank: int

    def now(self) -> float:
        return self.time.now(self.rank)

    def sleep(self, seconds: float) -> None:
        self.time.sleep(self.rank, seconds)


class _MemoryPeers:
    """See `Peers`. All ranks know a published text at once."""

    def __init__(self, world: World, rank: int, engine: int) -> None:
        self._world = world
        self._rank = rank
        self._prefix = f"{engine}/"

    def announce_wait(self, rank: int | None) -> None:
        self._world.waits_for[self._rank] = rank

    def publish(self, key: str, value: str) -> None:
        self._world.texts.setdefault(self._prefix + key, value)

    def lookup(self, key: str) -> str | None:
        return self._world.texts.get(self._prefix + key)

    def status(self, rank: int) -> PeerStatus:
        world = self._world
        has_left = self.lookup(f"parted/{rank}") is not None
        ended_s = world.ended.get(rank)
        silent_s = 0.0 if ended_s is None else max(world.time.now(self._rank) - ended_s, 0.0)
        return PeerStatus(ended_s is not None and not has_left, has_left, silent_s, world.waits_for.get(rank))

    def leave(self) -> None:
        self.publish(f"parted/{self._rank}", "")


class _MemorySender:
    """See `Sender`. A link accepts everything at once."""

    waited_s = 0.0

    def __init__(self, pipe: Pipe, rank: int) -> None:
        self._pipe = pipe
        self._rank = rank

    def send(self, header: Sequence[int], body: Tensor | None, number: int) -> None:
        self._pipe.put(self._rank, header, body, 8 * len(header) + header[0])

    def make_room(self, num_parcels: int) -> None:
        pass

    def arrived(self, number: int) -> None:
        pass

    def flush(self) -> None:
        pass


class _MemoryReceiver:
    """See `Receiver`."""

    def __init__(self, pipe: Pipe, rank: int, check: HeaderCheck, name: str) -> None:
        self._pipe = pipe
        self._rank = rank
        self._check = check
        self._name = name
        self._more = True

    def start(self) -> None:
        pass

    def get(self, timeout_s: float | None) -> RawParcel | None:
        found = self._pipe.get(self._rank, timeout_s or 0.0, f"waits for a parcel over {self._name}")
        if found is not None:
            self._more = self._check(found.header)
        return found

    def make_room(self, num_parcels: int) -> None:
        pass

    def join(self, timeout_s: float) -> bool:
        """See `Receiver.join`; parcels in flight are dropped."""
        return not self._more


@dataclass(frozen=True, slots=True)
class MemoryLine:
    """See `Line`."""

    out: Pipe
    back: Pipe
    rank: int

    def sender(self) -> _MemorySender:
        return _MemorySender(self.out, self.rank)

    def receiver(self, length: int, check: HeaderCheck, name: str) -> _MemoryReceiver:
        return _MemoryReceiver(self.back, self.rank, check, name)

    def ping(self) -> None:
        self.out.put(self.rank, (0,), None, _PING_BYTES)

    def pong(self) -> None:
        self.back.get(self.rank, None, "waits for a ping")


@dataclass(frozen=True, slots=True)
class _MemoryLines:
    """See `Lines`."""

    below: MemoryLine | None
    above: MemoryLine | None
    time: VirtualTime
    rank: int
    around: MemoryLine | None = None
    replicas: None = None

    def close(self) -> None:
        pass

    def round_trip_s(self) -> float:
        if self.below is not None:
            self.below.pong()
            self.below.ping()
        if self.above is None:
            return 0.0
        start = self.time.now(self.rank)
        self.above.ping()
        self.above.pong()
        return self.time.now(self.rank) - start


class MemoryTransport:
    """The transport of a rank of `run_in_memory`; see `Transport`."""

    def __init__(self, world: World, rank: int) -> None:
        self._world = world
        self._count: dict[str, int] = {}
        self.rank = rank
        self.world_size = world.num_ranks
        self.clock = MemoryClock(world.time, rank)

    def peers(self, greeting: str, timeout_s: float = 300.0) -> _MemoryPeers:
        """See `Transport.peers`."""
        peers = _MemoryPeers(self._world, self.rank, self._next("peers"))
        peers.publish(f"greeting/{self.rank}", greeting)
        until = self.clock.now() + timeout_s
        for other in range(self.world_size):
            while (theirs := peers.lookup(f"greeting/{other}")) is None:
                if self.clock.now() > until:
                    raise StageError(missing_rank_message(other, timeout_s))
                self.clock.sleep(_POLL_S)
            if theirs != greeting:
                raise ConfigError(other_version_message(other, theirs, self.rank, greeting))
        return peers

    def lines(
        self,
        layout: RankLayout,
        device: torch.device,
        limit: WaitLimit | None = None,
        *,
        around: bool = False,
    ) -> _MemoryLines:
        """See `Transport.lines`.

        Raises:
            ConfigError: if there are replicas.
        """
        if layout.num_replicas > 1:
            raise ConfigError(
                f"replicas={layout.num_replicas}: data parallel training needs torch.distributed, and these ranks are threads "
                "of one process; use one replica"
            )
        engine, world, rank = self._next("lines"), self._world, self.rank
        world.meet(rank, f"the making of lines {engine}", None, None if limit is None else limit.check)

        def line(peer: int, what: str = "") -> MemoryLine:
            out, back = (world.pipe(f"{what}{engine}", *ends) for ends in ((rank, peer), (peer, rank)))
            return MemoryLine(out, back, rank)

        below = None if layout.is_first else line(layout.rank(layout.stage - 1))
        above = None if layout.is_last else line(layout.rank(layout.stage + 1))
        ends = (0, layout.num_stages - 1)
        other = ends[0] if layout.is_last else ends[1]
        at_end = around and layout.stage in ends
        return _MemoryLines(
            below, above, world.time, rank, line(layout.rank(other), "around ") if at_end else None
        )

    def sum(self, tensor: Tensor, check: Callable[[], None]) -> Tensor:
        """See `Transport.sum`: the sum is in the order of the ranks."""
        name = f"sum {self._next('sum')}"
        # A copy: other ranks are threads of this process, and would see a later change of the tensor.
        parts = self._world.meet(self.rank, name, tensor.detach().clone(), check)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return tensor.copy_(total)

    def broadcast(self, tensor: Tensor, source: int, check: Callable[[], None] | None = None) -> None:
        """See `Transport.broadcast`."""
        name = f"broadcast {self._next('broadcast')}"
        own = tensor.detach().clone() if self.rank == source else None
        tensor.copy_(self._world.meet(self.rank, name, own, check)[source])

    def _next(self, what: str) -> int:
        self._count[what] = self._count.get(what, 0) + 1
        return self._count[what]

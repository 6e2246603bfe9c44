"""What lies between two machines: how long a message is on its way, and what others wait for meanwhile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from ..core import ConfigError
from ..core.given import numbers_by_name

__all__ = ["BBR_GAIN", "Link", "Network", "Wire", "parse_link"]

#: Of BBR's start-up phase: the rate at which it sends over that which it has seen (Cardwell et al. 2016).
BBR_GAIN = 2 / math.log(2)

_PACKET_BYTES = 1448  # of a message in a TCP segment on Ethernet


@dataclass(frozen=True, slots=True)
class Wire:
    """One direction of a link. It carries one message at a time.

    ::

        sent      begins              leaves                arrives
        │ queue   │ bytes ÷ rate      │ + occupied │ propagation │
        └─────────┴───────────────────┴────────────┴─────────────►
                  └── the next one waits so long ──┘

    Attributes:
        delay_s: propagation, in seconds. Messages that follow are not held up by it.
        bytes_per_s: rate; `math.inf` for no limit.
        occupied_s: seconds for which a message occupies the wire besides the time of its bytes: a latency that does
            not overlap.
        jitter_s: mean of a random delay in addition, exponentially distributed. Messages do not overtake one another.
        loss: share of packets that are lost; each time a packet of a message is, it comes a round trip later.
    """

    delay_s: float = 0.0
    bytes_per_s: float = math.inf
    occupied_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0

    def serialise_s(self, num_bytes: float) -> float:
        """Return the seconds for which a message occupies the wire."""
        return num_bytes / self.bytes_per_s + self.occupied_s

    def num_packets(self, num_bytes: float) -> int:
        """Return the number of packets of a message."""
        return max(1, math.ceil(num_bytes / _PACKET_BYTES))


@dataclass(frozen=True, slots=True)
class Link:
    """The link between two machines; the two directions may differ.

    Attributes:
        up: towards later stages.
        down: towards earlier ones.
    """

    up: Wire = Wire()
    down: Wire = Wire()

    @property
    def rtt_s(self) -> float:
        """The round trip of a message without bytes, in seconds."""
        return sum(w.delay_s + w.occupied_s + w.jitter_s for w in (self.up, self.down))

    @classmethod
    def of(
        cls,
        *,
        rtt_ms: float = 0.0,
        mbit_s: float = math.inf,
        up_mbit_s: float | None = None,
        down_mbit_s: float | None = None,
        up_ms: float | None = None,
        down_ms: float | None = None,
        latency_ms: float = 0.0,
        jitter_ms: float = 0.0,
        loss_pct: float = 0.0,
    ) -> Link:
        """Return a link described by the figures that people know of one.

        Args:
            rtt_ms: round trip, half of it in each direction, which overlaps.
            mbit_s: rate of each direction, in 10⁶ bits per second.
            up_mbit_s: rate towards later stages, where it differs.
            down_mbit_s: rate towards earlier stages, where it differs.
            up_ms: propagation towards later stages, in place of half of ``rtt_ms``.
            down_ms: propagation towards earlier stages, in place of half of ``rtt_ms``.
            latency_ms: for which each message occupies its direction besides the time of its bytes.
            jitter_ms: mean of a random delay.
            loss_pct: packets in a hundred that are lost.

        Raises:
            ConfigError: if a figure is out of range.
        """
        given = dict(
            rtt_ms=rtt_ms,
            up_ms=0.0 if up_ms is None else up_ms,
            down_ms=0.0 if down_ms is None else down_ms,
            latency_ms=latency_ms,
            jitter_ms=jitter_ms,
        )
        for name, value in given.items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"link: {name}={value:g}: expected milliseconds from 0")
        if not 0 <= loss_pct < 100:
            raise ConfigError(f"link: loss_pct={loss_pct:g}: expected 0 or more, and less than 100")
        rates = dict(mbit_s=mbit_s, up_mbit_s=up_mbit_s, down_mbit_s=down_mbit_s)
        for name, value in rates.items():
            if value is not None and not value > 0:
                raise ConfigError(
                    f"link: {name}={value:g}: expected a rate over 0; leave it out for no limit"
                )
        wires = [
            Wire(
                (rtt_ms / 2 if own_ms is None else own_ms) * 1e-3,
                (mbit_s if own is None else own) * 1e6 / 8,
                latency_ms * 1e-3,
                jitter_ms * 1e-3,
                loss_pct / 100,
            )
            for own_ms, own in ((up_ms, up_mbit_s), (down_ms, down_mbit_s))
        ]
        return cls(*wires)


_KEYS = (
    *("rtt_ms", "mbit_s", "up_mbit_s", "down_mbit_s", "up_ms", "down_ms"),
    *("latency_ms", "jitter_ms", "loss_pct"),
)


def parse_link(text: str) -> Link:
    """Parse the description of a link.

    >>> parse_link("rtt_ms=50,mbit_s=1000").rtt_s
    0.05
    >>> parse_link("latency_ms=50,mbit_s=200").up.serialise_s(25e6)
    1.05

    Raises:
        ConfigError: if a key is unknown or given twice, or a value is not a number or out of range.
    """
    given = numbers_by_name(text, _KEYS, "link", "rtt_ms=50,mbit_s=1000")
    for key, value in given.items():
        if math.isnan(value):
            raise ConfigError(f"link '{text}': {key}='nan' is not a number; write it as in rtt_ms=50")
    return Link.of(**given)


@dataclass(frozen=True, slots=True)
class Network:
    """The links between processes, and how messages are handed over.

    Attributes:
        links: between neighbours ``k`` and ``k + 1``; one link stands for all.
        rendezvous: a message starts only when its receiver has asked for it, as with gloo and with NCCL's larger
            messages: the question goes the other way first. Otherwise it starts when it is sent.
        inbound: each receiver has one wire for all that comes to it, in the order in which it needs it, instead of one
            from each neighbour. Answers that a stage can do without fill its gaps.
        congestion: how the sender finds the rate of a wire. None: it knows it. ``"bbr"``: as a connection with BBR that is
            idle between messages, which never leaves its start-up phase. Of the bytes that it sends in one round trip it
            learns a rate, of which it then sends (g − 1) times as much, g = 2 / ln 2: bursts of so many bytes take
            RTT / (g − 1), however fast the wire is.
        burst_bytes: the largest burst that connections have carried before, from which they know a rate.
        startup_s: seconds that a process computes for each message that it sends or takes.
        copy_s_per_byte: seconds that it computes for each byte of it.
    """

    links: tuple[Link, ...] = (Link(),)
    rendezvous: bool = False
    inbound: bool = False
    congestion: Literal["bbr"] | None = None
    burst_bytes: float = 0.0
    startup_s: float = 0.0
    copy_s_per_byte: float = 0.0

    def __post_init__(self) -> None:
        if self.congestion not in (None, "bbr"):
            raise ConfigError(f"congestion={self.congestion!r}: expected None or 'bbr'")
        if not self.links:
            raise ConfigError(
                "a network of no links: expected one for all, or one for each pair of neighbours"
            )
        for field in fields(self):
            if (
                field.name.endswith(("_s", "_byte", "_bytes"))
                and not 0 <= getattr(self, field.name) < math.inf
            ):
                raise ConfigError(f"{field.name}={getattr(self, field.name)!r}: expected a number from 0")

    @classmethod
    def of(cls, links: Link | Sequence[Link], **settings: Any) -> Network:
        """Return the network of one link for all, or of one for each pair of neighbours."""
        return cls((links,) if isinstance(links, Link) else tuple(links), **settings)

    def link(self, lower: int) -> Link:
        """Return the link between processes ``lower`` and ``lower + 1``.

        Raises:
            ConfigError: if there is none.
        """
        if len(self.links) == 1:
            return self.links[0]
        if lower >= len(self.links):
            raise ConfigError(
                f"{len(self.links)} links: expected one for all, or one for each of the pairs of neighbours, of which "
                f"there is a pair {lower}, {lower + 1}"
            )
        return self.links[lower]

    def wire(self, source: int, to: int) -> Wire:
        """Return the wire from one process to another; those that are no neighbours have the slowest on the way."""
        low, high = sorted((source, to))
        towards: Literal["up", "down"] = "up" if source < to else "down"
        if high - low == 1 or len(self.links) == 1:
            return getattr(self.link(low), towards)
        between = [getattr(self.link(k), towards) for k in range(low, high)]
        return max(between, key=lambda wire: (wire.delay_s + wire.occupied_s, -wire.bytes_per_s))

    def handling_s(self, num_bytes: float) -> float:
        """Return the seconds that a process computes for a message."""
        return self.startup_s + self.copy_s_per_byte * num_bytes

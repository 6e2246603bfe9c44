"""Round trip and rate of an emulated link, read from a text such as ``rtt_ms=50,mbit_s=1000``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...core import ConfigError
from ...core.errors import SynthgradError
from ...core.given import numbers_by_name

__all__ = ["Link", "LinkError", "parse_link"]

_KEYS = ("rtt_ms", "mbit_s", "down_mbit_s", "jitter_ms")
_MAX_RTT_MS = 10_000.0  # with a longer one TCP fails to connect
_MIN_QUEUE_BYTES = 256 << 10
_UNLIMITED_QUEUE_BYTES = 256 << 20


class LinkError(SynthgradError, RuntimeError):
    """The emulated link failed, and measurements made through it are not valid."""


@dataclass(frozen=True)
class Link:
    """The link between two workers; each pair of workers has its own, with the same properties.

    Args:
        rtt_ms: round trip in milliseconds, half of it in each direction; 0 for no delay.
        mbit_s: rate in 10⁶ bits per second, including Ethernet headers, from each worker to those of higher rank, and back
            unless ``down_mbit_s`` is given; None for no limit.
        down_mbit_s: rate from each worker to those of lower rank; None for the same as up.
        jitter_ms: what is added to the delay of a frame, at most and uniformly at random; frames keep their order.

    Raises:
        ConfigError: if a number is out of range.
    """

    rtt_ms: float = 0.0
    mbit_s: float | None = None
    down_mbit_s: float | None = None
    jitter_ms: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.rtt_ms <= _MAX_RTT_MS:  # also refuses NaN
            raise ConfigError(f"link: rtt_ms={self.rtt_ms:g}: expected 0 to {_MAX_RTT_MS:g} milliseconds")
        if not 0 <= self.jitter_ms <= _MAX_RTT_MS:
            raise ConfigError(
                f"link: jitter_ms={self.jitter_ms:g}: expected 0 to {_MAX_RTT_MS:g} milliseconds"
            )
        for name in ("mbit_s", "down_mbit_s"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < math.inf:
                raise ConfigError(f"link: {name}={rate:g}: expected a rate over 0; leave it out for no limit")
        if self.down_mbit_s is not None and self.mbit_s is None:
            raise ConfigError(
                f"link: down_mbit_s={self.down_mbit_s:g} without mbit_s: give the rate of both directions"
            )

    @property
    def delay_s(self) -> float:
        """The delay from one end to the other, in seconds."""
        return self.rtt_ms / 2e3

    @property
    def bytes_per_s(self) -> float | None:
        """The rate upwards in bytes per second; None for no limit."""
        return None if self.mbit_s is None else self.mbit_s * 1e6 / 8

    @property
    def down_bytes_per_s(self) -> float | None:
        """The rate downwards in bytes per second; None for no limit."""
        return self.bytes_per_s if self.down_mbit_s is None else self.down_mbit_s * 1e6 / 8

    @property
    def queue_bytes(self) -> int:
        """The size of the queue before the link upwards, in bytes; like a router, the link drops what does not fit.

        It is one bandwidth-delay product, the usual size, but at least 256 KiB, or four of the bundles that TCP sends
        at once. Without a rate nothing queues: the limit of 256 MiB then holds for frames on their way, and only
        bounds the memory.
        """
        return self._queue_bytes(self.bytes_per_s)

    @property
    def down_queue_bytes(self) -> int:
        """The same downwards."""
        return self._queue_bytes(self.down_bytes_per_s)

    def _queue_bytes(self, bytes_per_s: float | None) -> int:
        if bytes_per_s is None:
            return _UNLIMITED_QUEUE_BYTES
        return max(_MIN_QUEUE_BYTES, round(bytes_per_s * self.rtt_ms / 1e3))

    @property
    def words(self) -> str:
        """What the link is, in words for a progress line."""
        rates = [rate for rate in (self.mbit_s, self.down_mbit_s) if rate is not None]
        said = [f"round trip {self.rtt_ms:g} ms"]
        said += [f"jitter {self.jitter_ms:g} ms"] if self.jitter_ms else []
        said += [f"{' and '.join(f'{rate:g}' for rate in rates)} Mbit/s"] if rates else []
        return ", ".join(said)


def parse_link(text: str) -> Link:
    """Parse the description of a link.

    >>> parse_link("rtt_ms=50,mbit_s=1000")
    Link(rtt_ms=50.0, mbit_s=1000.0, down_mbit_s=None, jitter_ms=0.0)
    >>> parse_link("rtt_ms=5,mbit_s=200,down_mbit_s=20,jitter_ms=2").words
    'round trip 5 ms, jitter 2 ms, 200 and 20 Mbit/s'

    Raises:
        ConfigError: if a key is unknown or given twice, or a value is not a number or out of range.
    """
    return Link(**numbers_by_name(text, _KEYS, "link", "rtt_ms=50,mbit_s=1000"))

"""What is emulated: the round trip and the rate between two workers, read from ``rtt_ms=50,mbit_s=1000``."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...core import ConfigError
from ...core.errors import SynthgradError

__all__ = ["Link", "LinkError", "parse_link"]

_KEYS = ("rtt_ms", "mbit_s")
_LONGEST_RTT_MS = 10_000.0  # beyond, TCP gives up before it has begun
_LEAST_QUEUE_BYTES = 256 << 10
_UNLIMITED_QUEUE_BYTES = 256 << 20


class LinkError(SynthgradError, RuntimeError):
    """The emulated link could not be kept up: what was measured through it is void."""


@dataclass(frozen=True)
class Link:
    """The link between every two workers; each pair has one of its own.

    Args:
        rtt_ms: time of a round trip in milliseconds, half of it in each direction; 0 for no delay.
        mbit_s: rate in each direction in 10⁶ bits a second, Ethernet headers included; None for no limit.

    Raises:
        ConfigError: if a number is out of its range.
    """

    rtt_ms: float = 0.0
    mbit_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rtt_ms <= _LONGEST_RTT_MS:  # false for NaN as well
            raise ConfigError(
                f"link: rtt_ms={self.rtt_ms:g} is not a round trip; give 0 to {_LONGEST_RTT_MS:g} milliseconds"
            )
        if self.mbit_s is not None and not 0 < self.mbit_s < math.inf:
            raise ConfigError(
                f"link: mbit_s={self.mbit_s:g} is not a rate; give more than 0, or leave it out for no limit"
            )

    @property
    def delay_s(self) -> float:
        """The time from one end to the other, in seconds."""
        return self.rtt_ms / 2e3

    @property
    def bytes_per_s(self) -> float | None:
        """The rate in bytes a second; None for no limit."""
        return None if self.mbit_s is None else self.mbit_s * 1e6 / 8

    @property
    def queue_bytes(self) -> int:
        """How much may wait before the link, in bytes: more is dropped, as a router does.

        One bandwidth-delay product, the customary size, but 256 KiB at least, which is four of the bundles that TCP
        hands over at once. Without a rate nothing waits: the limit (256 MiB) then holds for what is under way, and
        is there for the memory's sake.
        """
        if self.bytes_per_s is None:
            return _UNLIMITED_QUEUE_BYTES
        return max(_LEAST_QUEUE_BYTES, round(self.bytes_per_s * self.rtt_ms / 1e3))


def parse_link(text: str) -> Link:
    """Return the link that ``rtt_ms=50,mbit_s=1000`` describes.

    >>> parse_link("rtt_ms=50,mbit_s=1000")
    Link(rtt_ms=50.0, mbit_s=1000.0)
    >>> parse_link("rtt_ms=5")
    Link(rtt_ms=5.0, mbit_s=None)

    Raises:
        ConfigError: for an unknown key, a key given twice, something that is no number, or one out of its range.
    """
    given: dict[str, float] = {}
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            raise ConfigError(
                f"link '{text}': '{part.strip()}' is not key=value; write rtt_ms=50,mbit_s=1000"
            )
        if key not in _KEYS:
            raise ConfigError(f"link '{text}': unknown key '{key}'; expected {' or '.join(_KEYS)}")
        if key in given:
            raise ConfigError(f"link '{text}': {key} is given twice; give it once")
        try:
            given[key] = float(value)
        except ValueError:
            raise ConfigError(
                f"link '{text}': {key}='{value}' is not a number; write rtt_ms=50,mbit_s=1000"
            ) from None
    return Link(**given)

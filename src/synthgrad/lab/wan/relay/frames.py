"""What a TAP device hands over: a header of ten bytes, then an Ethernet frame, perhaps a bundle of TCP segments.

The header is ``struct virtio_net_hdr`` (``linux/virtio_net.h``): flags, type of bundle, and in words of 16 bits length
of the headers, payload of one segment, start and offset of the checksum. With it the kernel neither cuts a stream into
frames of 1,500 bytes nor computes checksums: up to 64 KiB pass in one read and one write, while TCP still counts in
segments of 1,448 bytes, as it does on a real link. Jumbo frames would be as cheap, but TCP starts with ten segments
whatever their size, so that a start with frames of 64 KiB would know no slow start.
"""

from __future__ import annotations

import sys

__all__ = ["HEADER_BYTES", "LONGEST_BYTES", "address_of", "destination", "is_for_all", "wire_bytes"]

HEADER_BYTES = 10
LONGEST_BYTES = HEADER_BYTES + 18 + 65_535  # Ethernet with a VLAN tag, and the longest datagram

_ECN = 0x80  # a flag beside the type


def wire_bytes(frame: bytes) -> int:
    """Return what a frame, or all frames of a bundle, take on the wire, Ethernet headers included."""
    size = len(frame) - HEADER_BYTES
    if not frame[1] & ~_ECN:
        return size
    segment = int.from_bytes(frame[4:6], sys.byteorder)
    tcp = int.from_bytes(frame[6:8], sys.byteorder)  # the checksum starts where TCP does
    headers = tcp + (frame[HEADER_BYTES + tcp + 12] >> 4) * 4
    num_segments = max(1, -(-(size - headers) // segment))
    return size + (num_segments - 1) * headers


def destination(frame: bytes) -> bytes:
    """Return the six bytes of the address that a frame is for."""
    return frame[HEADER_BYTES : HEADER_BYTES + 6]


def is_for_all(frame: bytes) -> bool:
    """Return whether a frame is a broadcast or a multicast."""
    return bool(frame[HEADER_BYTES] & 1)


def address_of(rank: int) -> bytes:
    """Return the six bytes of a worker's hardware address, from the range that nobody owns."""
    return bytes((0x02, 0x73, 0x67, 0, 0, rank + 1))

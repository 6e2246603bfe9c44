"""The format of a TAP device's data: a header of ten bytes, then an Ethernet frame, perhaps a bundle of TCP segments.

The header is ``struct virtio_net_hdr`` (``linux/virtio_net.h``): flags and type of bundle, one byte each; then in 16 bits
each the length of the protocol headers, the payload of one segment, and start and offset of the checksum. Because of it
the kernel neither splits a stream into frames of 1,500 bytes nor computes checksums: up to 64 KiB pass in one read and
one write, while TCP still counts in segments of 1,448 bytes, as on a real link. Jumbo frames would be as cheap, but TCP
starts with ten segments of any size, so with frames of 64 KiB there would be no slow start.
"""

from __future__ import annotations

import sys

__all__ = ["HEADER_BYTES", "MAX_BYTES", "address_of", "destination", "is_for_all", "wire_bytes"]

HEADER_BYTES = 10
MAX_BYTES = HEADER_BYTES + 18 + 65_535  # Ethernet header with a VLAN tag, and the longest datagram

_ECN = 0x80  # flag in the byte of the type


def wire_bytes(frame: bytes) -> int:
    """Return the size on the wire of a frame or of all frames in a bundle, including Ethernet headers."""
    size = len(frame) - HEADER_BYTES
    if not frame[1] & ~_ECN:
        return size
    segment = int.from_bytes(frame[4:6], sys.byteorder)
    tcp = int.from_bytes(frame[6:8], sys.byteorder)  # the checksum starts where TCP does
    headers = tcp + (frame[HEADER_BYTES + tcp + 12] >> 4) * 4
    num_segments = max(1, -(-(size - headers) // segment))
    return size + (num_segments - 1) * headers


def destination(frame: bytes) -> bytes:
    """Return the destination address of a frame, six bytes."""
    return frame[HEADER_BYTES : HEADER_BYTES + 6]


def is_for_all(frame: bytes) -> bool:
    """Return whether a frame is a broadcast or a multicast."""
    return bool(frame[HEADER_BYTES] & 1)


def address_of(rank: int) -> bytes:
    """Return the hardware address of a worker, six bytes from the locally administered range."""
    return bytes((0x02, 0x73, 0x67, 0, 0, rank + 1))

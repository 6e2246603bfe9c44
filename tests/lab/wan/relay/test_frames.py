"""Sizes and addresses, read from the bytes of a TAP device."""

from __future__ import annotations

import struct

from synthgrad.lab.wan.relay import frames

_ETHERNET, _IP, _TCP = 14, 20, 32  # TCP with time stamps


def bundle(payload: int, segment: int, kind: int) -> bytes:
    header = struct.pack("=BBHHHH", 1, kind, 0, segment, _ETHERNET + _IP, 16)
    tcp = bytes(12) + bytes([_TCP // 4 << 4]) + bytes(_TCP - 13)
    return header + bytes(_ETHERNET + _IP) + tcp + bytes(payload)


def test_a_plain_frame_takes_its_length() -> None:
    assert frames.wire_bytes(bundle(100, 0, 0)) == 166


def test_every_segment_of_a_bundle_has_headers() -> None:
    assert frames.wire_bytes(bundle(3 * 1448, 1448, 1)) == 3 * 1514
    assert frames.wire_bytes(bundle(2 * 1448 + 1, 1448, 1)) == 2 * 1514 + 67


def test_the_flag_for_congestion_is_no_type() -> None:
    assert frames.wire_bytes(bundle(100, 0, 0x80)) == 166
    assert frames.wire_bytes(bundle(2 * 1448, 1448, 0x81)) == 2 * 1514


def test_addresses() -> None:
    frame = bytes(frames.HEADER_BYTES) + frames.address_of(2) + bytes(60)
    assert frames.destination(frame) == frames.address_of(2) != frames.address_of(1)
    assert not frames.is_for_all(frame)
    assert frames.is_for_all(bytes(frames.HEADER_BYTES) + b"\xff" * 6)

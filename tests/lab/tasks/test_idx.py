"""IDX files: what is read, and that bad files are refused by name."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgrad.core import DataError
from synthgrad.lab.tasks import idx
from synthgrad.lab.tasks.idx import parse_idx, read_bytes

PATH = Path("some-ubyte")


def _idx(array: np.ndarray) -> bytes:
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def _images() -> np.ndarray:
    return np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_round_trip(shape: list[int], seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    found = parse_idx(_idx(array), PATH, array.ndim)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, array)


def test_values_are_in_row_major_order() -> None:
    content = bytes((0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3)) + bytes((1, 2, 3, 4, 5, 6))
    assert parse_idx(content, PATH, 2).tolist() == [[1, 2, 3], [4, 5, 6]]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 3 * 4 * 2 + 15))
def test_truncated_anywhere_is_refused(length: int) -> None:
    with pytest.raises(DataError, match="some-ubyte"):
        parse_idx(_idx(_images())[:length], PATH, 3)


def test_truncated_says_how_many_values_are_there() -> None:
    with pytest.raises(DataError, match=r"some-ubyte: has 20 values, expected 24 for the shape \(2, 3, 4\)"):
        parse_idx(_idx(_images())[:-4], PATH, 3)


def test_surplus_bytes_are_refused() -> None:
    with pytest.raises(DataError, match="some-ubyte: has 25 values, expected 24"):
        parse_idx(_idx(_images()) + b"x", PATH, 3)


@pytest.mark.parametrize(
    "magic",
    [b"", b"\x00\x00", b"\x1f\x8b\x08\x00", b"\x00\x00\x08\x01", b"\x00\x00\x09\x03", b"\x00\x00\x0d\x03"],
    ids=["nothing", "cut", "gzip", "labels", "signed", "float"],
)
def test_wrong_magic_is_refused(magic: bytes) -> None:
    with pytest.raises(DataError, match="some-ubyte.*expected 00000803"):
        parse_idx(magic + bytes(40) if len(magic) == 4 else magic, PATH, 3)


def test_header_whose_size_overflows_is_refused() -> None:
    # 2**31 * 2**31 * 4 is 2**64: in 64 bits the product is 0, as many values as are there.
    content = struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**31, 4)
    with pytest.raises(DataError, match="some-ubyte"):
        parse_idx(content, PATH, 3)


def test_read_bytes_plain(tmp_path: Path) -> None:
    path = tmp_path / "plain-ubyte"
    path.write_bytes(b"\x1f\x8b not unpacked: the name does not end in gz")
    assert read_bytes(path).startswith(b"\x1f\x8b not")


def test_read_bytes_unpacks(tmp_path: Path) -> None:
    path = tmp_path / "packed-ubyte.gz"
    path.write_bytes(gzip.compress(b"content"))
    assert read_bytes(path) == b"content"


def _damaged(kind: str) -> bytes:
    whole = gzip.compress(np.random.default_rng(0).bytes(2000))
    return {
        "cut": whole[: len(whole) // 2],
        "no gzip": b"<html>404</html>",
        "wrong sum": whole[:-8] + bytes(4) + whole[-4:],
        "garbled": whole[:10] + b"\xff" * 200 + whole[210:],
    }[kind]


@pytest.mark.parametrize("kind", ["cut", "no gzip", "wrong sum", "garbled"])
def test_damaged_gzip_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(_damaged(kind))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: cannot be read .*fetch it again"):
        read_bytes(path)


def test_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing-here"):
        read_bytes(tmp_path / "nothing-here")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["text.txt", "text.gz"])
def test_a_pipe_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}: is a pipe or device, expected a file"):
        read_bytes(tmp_path / name)


@pytest.mark.parametrize("name", ["zeros", "zeros.gz"])
def test_a_file_that_grows_beyond_all_bounds_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idx, "MAX_BYTES", 1 << 20)
    path = tmp_path / name
    for size, fits in ((1 << 20, True), ((1 << 20) + 1, False)):
        path.write_bytes(gzip.compress(bytes(size)) if path.suffix else bytes(size))
        if fits:
            assert read_bytes(path) == bytes(size)
        else:
            with pytest.raises(DataError, match=rf"{name}: holds more than 1 MiB"):
                read_bytes(path)

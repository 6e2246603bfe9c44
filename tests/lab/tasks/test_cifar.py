"""CIFAR-10: pickled batches are read as arrays, and run nothing."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthgrad.core import DataError
from synthgrad.lab.tasks import cifar
from synthgrad.lab.tasks.cifar import FOLDER, OFFICIAL_MD5, load_cifar10, parse_batch
from tests.real_data import data_folder, needs_data

pytestmark = pytest.mark.usefixtures("offline")

PATH = Path("data_batch_1")
ARCHIVE = "cifar-10-python.tar.gz"


def _batch(seed: int = 0, n: int = 10) -> dict[bytes, Any]:
    data = np.random.default_rng(seed).integers(
        0, 16, (n, 3072), np.uint8
    )  # so few values that gzip packs them
    return {
        b"batch_label": b"a batch",
        b"labels": [k % 10 for k in range(n)],
        b"data": data,
        b"filenames": [b"a"] * n,
    }


def _contents() -> dict[str, bytes]:
    return {name: pickle.dumps(_batch(seed), 2) for seed, name in enumerate(OFFICIAL_MD5)}


def _folder(root: Path, contents: dict[str, bytes]) -> Path:
    (root / FOLDER).mkdir(parents=True)
    for name, content in contents.items():
        (root / FOLDER / name).write_bytes(content)
    return root


def _archive(root: Path, contents: dict[str, bytes], level: int = 9) -> Path:
    with tarfile.open(root / ARCHIVE, "w:gz", compresslevel=level) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return root / ARCHIVE


# One batch


@pytest.mark.parametrize("protocol", [2, 3, 4, 5, pickle.HIGHEST_PROTOCOL])
def test_batch_round_trip(protocol: int) -> None:
    batch = _batch()
    images, labels = parse_batch(pickle.dumps(batch, protocol), PATH)
    np.testing.assert_array_equal(images.reshape(10, 3072), batch[b"data"])
    assert images.shape == (10, 3, 32, 32)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    assert labels.tolist() == batch[b"labels"]


def test_planes_are_red_green_blue() -> None:
    data = np.repeat(np.array([[10, 20, 30]], np.uint8), 1024, axis=1)
    images, _ = parse_batch(pickle.dumps({b"data": data, b"labels": [0]}, 2), PATH)
    assert [int(plane.min()) for plane in images[0]] == [10, 20, 30]
    assert [int(plane.max()) for plane in images[0]] == [10, 20, 30]


def _written_by_python_2() -> bytes:
    """Return a batch with the opcodes and names of a Python 2 pickle, as the official files have."""
    raw = bytes(range(256)) * 12
    text = b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    text += b"(K\x01K\x01M\x00\x0c\x86" + dtype + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    return text + b"U\x06labels]K\x07au."


def test_batch_of_python_2_is_read() -> None:
    images, labels = parse_batch(_written_by_python_2(), PATH)
    assert images[0, 0].ravel().tolist() == list(range(256)) * 4
    assert labels.tolist() == [7]


class _Attack:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_pickle_that_calls_a_program_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "was-run"
    content = pickle.dumps(_batch() | {b"more": _Attack(os.system, f"touch {mark}")}, protocol)
    with pytest.raises(DataError, match=r"data_batch_1.*it calls \w+\.system"):
        parse_batch(content, PATH)
    assert not mark.exists()


@pytest.mark.parametrize("function", [eval, exec, getattr, np.load, Path], ids=lambda f: f.__name__)
def test_other_calls_are_refused(function: Any) -> None:
    with pytest.raises(DataError, match="it calls"):
        parse_batch(pickle.dumps(_Attack(function, "1"), 2), PATH)


@pytest.mark.parametrize(
    "batch",
    [
        _batch() | {b"data": np.zeros((10, 3071), np.uint8)},
        _batch() | {b"data": np.zeros((10, 3, 32, 32), np.uint8)},
        _batch() | {b"data": np.zeros((10, 3072), np.float32)},
        _batch() | {b"labels": [[0]] * 10},
        {"data": np.zeros((10, 3072), np.uint8), "labels": [0] * 10},
        {b"data": np.zeros((10, 3072), np.uint8), b"fine_labels": [0] * 10},
        ["no", "dictionary"],
        None,
    ],
    ids=["width", "four dimensions", "floats", "labels", "text keys", "cifar-100", "list", "none"],
)
def test_another_content_is_refused_by_name(batch: object) -> None:
    with pytest.raises(DataError, match="data_batch_1"):
        parse_batch(pickle.dumps(batch, 2), PATH)


@pytest.mark.parametrize("length", [0, 1, 20, 1000, -1])
def test_cut_batch_is_refused_by_name(length: int) -> None:
    with pytest.raises(DataError, match="data_batch_1: is no CIFAR-10 batch"):
        parse_batch(pickle.dumps(_batch(), 2)[:length], PATH)


# Six of them


def test_folder_is_read_in_order_with_a_warning(tmp_path: Path) -> None:
    _folder(tmp_path, _contents())
    with pytest.warns(UserWarning, match="6 of 6 batches are not the official ones"):
        data = load_cifar10(tmp_path)
    assert data.train.x.shape == (50, 3, 32, 32)
    assert data.test.x.shape == (10, 3, 32, 32)
    second = torch.from_numpy(_batch(1)[b"data"].reshape(-1, 3, 32, 32))
    assert torch.equal((data.train.x[10:20] * 255).round().byte(), second)
    assert data.test.y.tolist() == list(range(10))
    assert (data.name, data.classes, len(data.sha256)) == ("cifar10", 10, 64)


def test_official_batches_give_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = _contents()
    sums = {n: hashlib.md5(c, usedforsecurity=False).hexdigest() for n, c in contents.items()}
    monkeypatch.setattr(cifar, "OFFICIAL_MD5", sums)
    assert len(load_cifar10(_folder(tmp_path, contents)).train) == 50  # a warning would be an error


def test_archive_and_folder_are_the_same(tmp_path: Path) -> None:
    _folder(tmp_path / "a", _contents())
    (tmp_path / "b").mkdir()
    _archive(tmp_path / "b", _contents())
    with pytest.warns(UserWarning, match="not the official"):
        one, other = load_cifar10(tmp_path / "a"), load_cifar10(tmp_path / "b")
    assert one.sha256 == other.sha256
    assert torch.equal(one.train.x, other.train.x)


@pytest.mark.parametrize("name", OFFICIAL_MD5)
def test_missing_batch_is_named(name: str, tmp_path: Path) -> None:
    _folder(tmp_path, _contents())
    (tmp_path / FOLDER / name).unlink()
    with pytest.raises(DataError, match=f"{name}: missing"):
        load_cifar10(tmp_path)


def test_batches_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    # One label too few here and one too many there: in sum they fit, but every label is another image's.
    short, long = _batch() | {b"labels": [0] * 9}, _batch() | {b"labels": [0] * 11}
    contents = _contents() | {"data_batch_1": pickle.dumps(short, 2), "data_batch_2": pickle.dumps(long, 2)}
    _folder(tmp_path, contents)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match="data_batch_1"):
            load_cifar10(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "cut late", "garbled", "no archive", "empty"])
def test_damaged_archive_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    path = _archive(tmp_path, _contents())
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "cut": whole[:middle],
            "cut late": whole[:-2000],
            "garbled": whole[:middle] + b"\xff" * 2000 + whole[middle + 2000 :],
            "no archive": b"<html>404</html>",
            "empty": b"",
        }[damage]
    )
    with pytest.raises(DataError, match=rf"{ARCHIVE}: is damaged"):
        load_cifar10(tmp_path)


def test_archive_with_another_byte_is_refused(tmp_path: Path) -> None:
    # Nothing is packed at level 0: the change is one pixel, and only the sum at the archive's end tells.
    path = _archive(tmp_path, _contents(), level=0)
    whole = bytearray(path.read_bytes())
    whole[10_000] ^= 1
    path.write_bytes(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match=rf"{ARCHIVE}: is damaged"):
            load_cifar10(tmp_path)


def test_archive_without_a_batch_is_refused_by_name(tmp_path: Path) -> None:
    contents = _contents()
    del contents["data_batch_3"]
    _archive(tmp_path, contents)
    with pytest.raises(DataError, match=rf"{ARCHIVE}: is damaged.*data_batch_3"):
        load_cifar10(tmp_path)


def test_missing_archive_without_network_says_what_goes_where(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_cifar10(tmp_path)
    assert str(tmp_path / ARCHIVE) in str(caught.value)
    assert "no network in tests" in str(caught.value)


@needs_data(FOLDER)
def test_real_batches() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # copies made from JPEGs are accepted with a warning
        data = load_cifar10(data_folder())
    assert torch.bincount(data.train.y).tolist() == [5000] * 10
    assert torch.bincount(data.test.y).tolist() == [1000] * 10
    assert data.train.x.shape == (50_000, 3, 32, 32)

"""MNIST: the embedded subset, and the standard files in all forms in which users have them."""

from __future__ import annotations

import gzip
import hashlib
import struct
import warnings
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
import torch

from synthgrad.core import ConfigError, DataError
from synthgrad.lab.tasks import DATASETS, LabelledData, load, mnist
from synthgrad.lab.tasks.mnist import load_mnist, load_mnist_10k
from tests.real_data import data_folder, needs_data

pytestmark = pytest.mark.usefixtures("offline")

NAMES = tuple(mnist.SHA256)


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def _content(num_train: int = 20, num_test: int = 10) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    content: dict[str, bytes] = {}
    for part, n in (("train", num_train), ("t10k", num_test)):
        content[f"{part}-images-idx3-ubyte"] = _idx(rng.integers(0, 256, (n, 28, 28), np.uint8))
        content[f"{part}-labels-idx1-ubyte"] = _idx((np.arange(n) % 10).astype(np.uint8))
    return content


def _write(folder: Path, content: dict[str, bytes], *, pack: bool = True, below: str = "mnist") -> Path:
    (folder / below).mkdir(parents=True)
    for name, raw in content.items():
        path = folder / below / (f"{name}.gz" if pack else name)
        path.write_bytes(gzip.compress(raw, mtime=0) if pack else raw)
    return folder


def _load_unofficial(folder: Path) -> LabelledData:
    with pytest.warns(UserWarning, match="not the official file"):
        return load_mnist(folder)


# The embedded set


@pytest.fixture(scope="module")
def embedded() -> LabelledData:
    return load_mnist_10k()


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with (
        files("synthgrad.lab.tasks").joinpath("embedded/mnist_10k.npz").open("rb") as file,
        np.load(file) as found,
    ):
        return dict(found)


def test_embedded_shapes(embedded: LabelledData) -> None:
    assert embedded.train.x.shape == (10_000, 1, 28, 28)
    assert embedded.test.x.shape == (2_000, 1, 28, 28)
    assert embedded.train.y.shape == (10_000,)
    assert embedded.test.y.shape == (2_000,)
    assert (embedded.name, embedded.classes) == ("mnist-10k", 10)


def test_embedded_types_and_range(embedded: LabelledData) -> None:
    for split in (embedded.train, embedded.test):
        assert split.x.dtype == torch.float32
        assert split.y.dtype == torch.int64
        assert (float(split.x.min()), float(split.x.max())) == (0.0, 1.0)


def test_embedded_classes_are_balanced(embedded: LabelledData) -> None:
    assert torch.bincount(embedded.train.y).tolist() == [1000] * 10
    assert torch.bincount(embedded.test.y).tolist() == [200] * 10


def test_embedded_parts_are_disjoint(arrays: dict[str, np.ndarray]) -> None:
    train, test = set(arrays["train_index"].tolist()), set(arrays["test_index"].tolist())
    assert (len(train), len(test)) == (10_000, 2_000)
    assert not train & test
    assert min(train | test) >= 0
    assert max(train | test) < 60_000


def test_embedded_images_are_those_of_the_file(embedded: LabelledData, arrays: dict[str, np.ndarray]) -> None:
    assert torch.equal(
        (embedded.train.x[:50, 0] * 255).round().byte(), torch.from_numpy(arrays["train_x"][:50])
    )
    assert embedded.test.y.tolist() == arrays["test_y"].tolist()


def test_embedded_sum_is_that_of_the_file(embedded: LabelledData) -> None:
    raw = files("synthgrad.lab.tasks").joinpath("embedded/mnist_10k.npz").read_bytes()
    assert embedded.sha256 == hashlib.sha256(raw).hexdigest() == mnist.EMBEDDED_SHA256


def test_embedded_with_another_sum_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist, "EMBEDDED_SHA256", "0" * 64)
    with pytest.raises(DataError, match=r"mnist_10k\.npz.*damaged.*reinstall"):
        load_mnist_10k()


@needs_data("mnist")
def test_embedded_images_are_official_training_images(arrays: dict[str, np.ndarray]) -> None:
    raw = gzip.decompress((data_folder() / "mnist/train-images-idx3-ubyte.gz").read_bytes())
    official = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)
    np.testing.assert_array_equal(official[arrays["train_index"]], arrays["train_x"])
    np.testing.assert_array_equal(official[arrays["test_index"]], arrays["test_x"])


# The standard files


@needs_data("mnist")
def test_official_files_load_without_a_warning() -> None:
    data = load_mnist(data_folder())
    assert data.train.x.shape == (60_000, 1, 28, 28)
    assert data.test.x.shape == (10_000, 1, 28, 28)
    # As many of each digit as the official test set is known to have.
    assert torch.bincount(data.test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize("pack", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("below", ["mnist", "MNIST/raw", "data/mnist"])
def test_files_are_found_and_read(pack: bool, below: str, tmp_path: Path) -> None:
    content = _content()
    data = _load_unofficial(_write(tmp_path, content, pack=pack, below=below))
    first = np.frombuffer(content["train-images-idx3-ubyte"], np.uint8, 784, 16).reshape(28, 28)
    assert (data.train.x[0, 0] * 255).round().byte().tolist() == first.tolist()
    assert data.train.y.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 2
    assert (data.name, len(data.train), len(data.test)) == ("mnist", 20, 10)


def test_packed_and_unpacked_have_the_same_sum(tmp_path: Path) -> None:
    packed = _load_unofficial(_write(tmp_path / "a", _content()))
    plain = _load_unofficial(_write(tmp_path / "b", _content(), pack=False))
    assert packed.sha256 == plain.sha256
    assert len(packed.sha256) == 64


def test_folder_is_taken_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTHGRAD_DATA", str(_write(tmp_path, _content())))
    with pytest.warns(UserWarning, match="not the official file"):
        assert len(load_mnist(None).train) == 20


def test_every_unofficial_file_is_named_in_a_warning(tmp_path: Path) -> None:
    _write(tmp_path, _content())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_mnist(tmp_path)
    texts = [str(w.message) for w in caught]
    assert [name for name in NAMES if any(f"mnist/{name}.gz" in text for text in texts)] == list(NAMES)
    assert len(texts) == len(NAMES)


def test_files_with_the_official_sums_give_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = _content()
    monkeypatch.setattr(mnist, "SHA256", {n: hashlib.sha256(content[n]).hexdigest() for n in NAMES})
    assert len(load_mnist(_write(tmp_path, content)).test) == 10  # a warning would be an error


@pytest.mark.parametrize("name", NAMES)
def test_missing_file_without_network_says_what_goes_where(name: str, tmp_path: Path) -> None:
    _write(tmp_path, _content())
    (tmp_path / f"mnist/{name}.gz").unlink()
    with pytest.raises(DataError) as caught:
        load_mnist(tmp_path)
    text = str(caught.value)
    assert str(tmp_path / f"mnist/{name}.gz") in text
    assert "no network in tests" in text
    assert "--data-dir" in text
    assert "SYNTHGRAD_DATA" in text


def test_missing_file_is_fetched_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, asked = _content(), []

    def fetch(url: str, known_hash: str, fname: str, path: Path, **rest: Any) -> str:
        asked.append((url.rsplit("/", 1)[1], known_hash[:4]))
        path.mkdir(parents=True, exist_ok=True)
        (path / fname).write_bytes(gzip.compress(content[fname.removesuffix(".gz")]))
        return str(path / fname)

    monkeypatch.setattr(pooch, "retrieve", fetch)
    with pytest.warns(UserWarning, match="not the official file"):
        load_mnist(None)
    assert asked == [(f"{name}.gz", "md5:") for name in NAMES]
    assert (tmp_path / "cache/mnist" / f"{NAMES[0]}.gz").is_file()


def test_named_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: does not exist.*--data-dir"):
        load_mnist(tmp_path / "nowhere")


def _cut(content: dict[str, bytes]) -> dict[str, bytes]:
    return content | {"t10k-images-idx3-ubyte": content["t10k-images-idx3-ubyte"][:-5]}


def _swapped(content: dict[str, bytes]) -> dict[str, bytes]:
    return content | {"t10k-images-idx3-ubyte": content["t10k-labels-idx1-ubyte"]}


@pytest.mark.parametrize("damage", [_cut, _swapped], ids=["cut", "labels for images"])
@pytest.mark.parametrize("pack", [True, False], ids=["packed", "unpacked"])
def test_damaged_file_is_refused_by_name(
    damage: Callable[[dict[str, bytes]], dict[str, bytes]], pack: bool, tmp_path: Path
) -> None:
    _write(tmp_path, damage(_content()), pack=pack)
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte"):
        load_mnist(tmp_path)


def test_empty_data_set_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, _content(num_test=0))
    with pytest.raises(DataError, match="mnist: the data set is empty"):
        load_mnist(tmp_path)


def test_images_without_their_labels_are_refused(tmp_path: Path) -> None:
    content = _content()
    content["train-labels-idx1-ubyte"] = _idx(np.zeros(19, np.uint8))
    with pytest.raises(DataError, match="20 images but 19 labels"):
        load_mnist(_write(tmp_path, content))


def test_label_out_of_range_is_refused(tmp_path: Path) -> None:
    content = _content()
    content["train-labels-idx1-ubyte"] = _idx(np.full(20, 10, np.uint8))
    with pytest.raises(DataError, match="has the label 10, expected 0 to 9"):
        load_mnist(_write(tmp_path, content))


# By name


def test_load_by_name() -> None:
    assert load("mnist-10k").name == "mnist-10k"


def test_unknown_name_lists_those_accepted() -> None:
    with pytest.raises(ConfigError) as caught:
        load("mnst")
    assert all(name in str(caught.value) for name in ("mnst", *DATASETS))

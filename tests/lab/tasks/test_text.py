"""Texts as characters: the usual files, and files as users may have them."""

from __future__ import annotations

import gzip
import hashlib
import warnings
from pathlib import Path
from typing import Any

import pooch
import pytest
import torch

from synthgrad.core import ConfigError, DataError
from synthgrad.lab.tasks import DATASETS, TEXTS, Text, load_text, text
from synthgrad.lab.tasks.text import MIN_CHARACTERS, SHA256
from tests.real_data import data_folder, needs_data

pytestmark = pytest.mark.usefixtures("offline")

PTB = tuple(name for name in SHA256 if "ptb" in name)


def _letters(data: Text, part: torch.Tensor) -> str:
    return "".join(data.alphabet[i] for i in part.tolist())


def _write_ptb(folder: Path, train: str = "abcab\n", valid: str = "ab\n", test: str = "cb\n") -> Path:
    (folder / "text").mkdir(parents=True)
    for name, content in zip(PTB, (train, valid, test), strict=True):
        (folder / name).write_text(content, encoding="utf-8", newline="")
    return folder


def _load_unofficial(name: str, folder: Path | None) -> Text:
    with pytest.warns(UserWarning, match="not the usual file"):
        return load_text(name, folder)


def _file(folder: Path, content: str | bytes, name: str = "mine.txt") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# The usual files


@needs_data(*SHA256)
def test_ptb_is_the_files_as_they_are() -> None:
    data = load_text("ptb", data_folder())  # a warning would be an error
    assert (len(data.train), len(data.valid), len(data.test)) == (5_101_618, 399_782, 449_945)
    assert (len(data.alphabet), data.classes, data.unknown, data.train.dtype) == (50, 51, 50, torch.uint8)
    for part, name in ((data.valid, PTB[1]), (data.test, PTB[2])):
        raw = (data_folder() / name).read_bytes().decode("utf-8")
        assert _letters(data, part) == raw
        assert "<unk>" in raw
    assert _letters(data, data.train[:200_000]) == (data_folder() / PTB[0]).read_bytes()[:200_000].decode()
    assert "\n" in data.alphabet


@needs_data(*SHA256)
def test_shakespeare_is_the_file_cut_in_order() -> None:
    data = load_text("shakespeare", data_folder())
    raw = (data_folder() / "text/tinyshakespeare.txt").read_text(encoding="utf-8")
    assert _letters(data, torch.cat([data.train, data.valid, data.test])) == raw
    assert (len(data.train), len(data.valid), len(data.test)) == (1_003_854, 55_770, 55_770)
    assert (len(data.alphabet), data.sha256) == (65, SHA256["text/tinyshakespeare.txt"])


def test_ptb_parts_come_from_their_files(tmp_path: Path) -> None:
    data = _load_unofficial("ptb", _write_ptb(tmp_path))
    assert (data.name, data.alphabet) == ("ptb", ("\n", "a", "b", "c"))
    assert (data.train.tolist(), data.valid.tolist(), data.test.tolist()) == (
        [1, 2, 3, 1, 2, 0],
        [1, 2, 0],
        [3, 2, 0],
    )


def test_every_unofficial_file_is_named_in_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="not the usual file") as caught:
        load_text("ptb", _write_ptb(tmp_path))
    assert [Path(str(w.message).split(":")[0]).name for w in caught] == [Path(name).name for name in PTB]


def test_files_with_the_usual_sums_give_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_ptb(tmp_path)
    sums = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in PTB}
    monkeypatch.setattr(text, "SHA256", sums)
    assert load_text("ptb", tmp_path).sha256 == hashlib.sha256("".join(sums.values()).encode()).hexdigest()


def test_any_changed_part_changes_the_sum(tmp_path: Path) -> None:
    sums = {
        _load_unofficial("ptb", _write_ptb(tmp_path / str(i), *parts)).sha256
        for i, parts in enumerate(
            (("abc", "ab", "ab"), ("abcc", "ab", "ab"), ("abc", "ac", "ab"), ("abc", "ab", "ac"))
        )
    }
    assert len(sums) == 4


def test_folder_is_taken_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTHGRAD_DATA", str(_write_ptb(tmp_path)))
    assert len(_load_unofficial("ptb", None).train) == 6


@pytest.mark.parametrize("name", PTB)
def test_missing_ptb_says_which_file_goes_where(name: str, tmp_path: Path) -> None:
    (_write_ptb(tmp_path) / name).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # those read before it are not the usual files
        with pytest.raises(DataError) as caught:
            load_text("ptb", tmp_path)
    said = str(caught.value)
    assert str(tmp_path / name) in said
    assert all(
        word in said for word in ("cannot be downloaded from anywhere", "--data-dir", "SYNTHGRAD_DATA")
    )


def test_missing_shakespeare_without_network_says_what_goes_where(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_text("shakespeare", tmp_path)
    said = str(caught.value)
    assert str(tmp_path / "text/tinyshakespeare.txt") in said
    assert "no network in tests" in said


def test_missing_shakespeare_is_fetched_with_the_sum_that_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def fetch(url: str, known_hash: str, fname: str, path: Path, **rest: Any) -> str:
        asked.append((url, known_hash))
        return str(_file(path, "to be " * 10, fname))

    monkeypatch.setattr(pooch, "retrieve", fetch)
    assert len(_load_unofficial("shakespeare", None).train) == 54
    assert asked == [
        (
            "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            f"sha256:{SHA256['text/tinyshakespeare.txt']}",
        )
    ]
    assert (tmp_path / "cache/text/tinyshakespeare.txt").is_file()


@pytest.mark.parametrize("name", PTB)
def test_part_that_is_too_short_is_refused_by_name(name: str, tmp_path: Path) -> None:
    (_write_ptb(tmp_path) / name).write_text("a")
    with (
        pytest.warns(UserWarning, match="not the usual"),
        pytest.raises(DataError, match=rf"{Path(name).name}: has 1 characters, expected at least 2"),
    ):
        load_text("ptb", tmp_path)


@pytest.mark.parametrize("name", PTB)
def test_part_that_is_not_utf8_is_refused_by_name(name: str, tmp_path: Path) -> None:
    (_write_ptb(tmp_path) / name).write_bytes(b"abc\xff")
    with (
        pytest.warns(UserWarning, match="not the usual"),
        pytest.raises(DataError, match=rf"{Path(name).name}: byte 3 is not UTF-8"),
    ):
        load_text("ptb", tmp_path)


def test_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text/tinyshakespeare.txt").mkdir(parents=True)
    with pytest.raises(DataError, match=r"tinyshakespeare\.txt: is a directory"):
        load_text("shakespeare", tmp_path)


# A file of the user's own


def test_file_is_cut_in_order(tmp_path: Path) -> None:
    content = "abcdefghij" * 10
    data = load_text(_file(tmp_path, content))
    assert (len(data.train), len(data.valid), len(data.test)) == (90, 5, 5)
    assert _letters(data, torch.cat([data.train, data.valid, data.test])) == content
    assert (data.name, data.sha256) == ("mine.txt", hashlib.sha256(content.encode()).hexdigest())


def test_path_may_be_a_string_and_packed(tmp_path: Path) -> None:
    path = _file(tmp_path, gzip.compress(b"ab" * 50), "mine.txt.gz")
    assert load_text(str(path)).train.tolist() == [0, 1] * 45


def test_characters_are_unicode_and_line_ends_stay(tmp_path: Path) -> None:
    content = "é\r\n𝛿→" * 20
    data = load_text(_file(tmp_path, content))
    assert data.alphabet == tuple(sorted(set(content)))
    assert _letters(data, data.train) == content[:90]


def test_path_of_the_name_of_a_known_text_is_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _file(tmp_path, "ab" * 50, "ptb")
    monkeypatch.chdir(tmp_path)
    assert load_text("./ptb").alphabet == load_text(Path("ptb")).alphabet == ("a", "b")
    with pytest.raises(DataError, match="cannot be downloaded from anywhere"):
        load_text("ptb")


def test_unknown_characters_have_a_number_of_their_own_and_are_counted(tmp_path: Path) -> None:
    content = "ab" * 45 + "axyab" + "abzzz"
    with pytest.warns(
        UserWarning,
        match=r"mine\.txt: 2 characters of the validation part and 3 of the test part do not occur",
    ):
        data = load_text(_file(tmp_path, content))
    assert (data.alphabet, data.unknown, data.classes) == (("a", "b"), 2, 3)
    assert (data.valid.tolist(), data.test.tolist()) == ([0, 2, 2, 0, 1], [0, 1, 2, 2, 2])


@pytest.mark.parametrize(("characters", "dtype"), [(255, torch.uint8), (256, torch.int64)])
def test_numbers_are_bytes_where_they_fit(characters: int, dtype: torch.dtype, tmp_path: Path) -> None:
    alphabet = "".join(chr(0x100 + i) for i in range(characters))
    data = load_text(_file(tmp_path, alphabet * 20))
    assert (data.train.dtype, data.unknown) == (dtype, characters)
    assert data.train[:characters].tolist() == list(range(characters))


def test_to_device_moves_every_part(tmp_path: Path) -> None:
    moved = load_text(_file(tmp_path, "ab" * 50)).to(torch.device("meta"))
    assert {part.device.type for part in (moved.train, moved.valid, moved.test)} == {"meta"}


@pytest.mark.parametrize("n", [0, 1, MIN_CHARACTERS - 1])
def test_short_text_is_refused_with_the_least_length(n: int, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=rf"mine\.txt: has {n} characters, expected at least {MIN_CHARACTERS}"
    ):
        load_text(_file(tmp_path, "é" * n))


def test_least_length_leaves_one_to_predict_in_every_part(tmp_path: Path) -> None:
    data = load_text(_file(tmp_path, "a" * MIN_CHARACTERS))
    assert min(len(data.train), len(data.valid), len(data.test)) == 2


def test_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mine\.txt: byte 50 is not UTF-8"):
        load_text(_file(tmp_path, b"a" * 50 + "é".encode("latin-1") + b"b" * 50))


def test_damaged_packed_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mine\.txt\.gz: cannot be read"):
        load_text(_file(tmp_path, gzip.compress(b"ab" * 50)[:-5], "mine.txt.gz"))


def test_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a directory, expected a UTF-8 text file"):
        load_text(tmp_path)


def test_too_many_different_characters_are_refused(tmp_path: Path) -> None:
    many = "".join(map(chr, range(0x10000, 0x10000 + 65_537)))
    with pytest.raises(DataError, match="has 65537 different characters, expected at most 65536"):
        load_text(_file(tmp_path, many + "\U00010000" * 10_000))


def test_what_is_neither_name_nor_file_lists_those_accepted() -> None:
    with pytest.raises(ConfigError) as caught:
        load_text("ptp")
    assert all(word in str(caught.value) for word in ("'ptp'", *TEXTS, "UTF-8"))


def test_images_and_texts_have_different_names() -> None:
    assert set(TEXTS) == {"ptb", "shakespeare", "shakespeare-50k"}
    assert not set(TEXTS) & set(DATASETS)

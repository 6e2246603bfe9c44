"""Texts as characters, bytes and byte pairs: the way back, the same in every process, and what cannot be."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthgrad.core import ConfigError, DataError
from synthgrad.lab.tasks import TOKENS, TokenText, load_text, load_tokens, tokens
from synthgrad.lab.tasks.text import MIN_CHARACTERS, Source
from synthgrad.lab.tasks.tokens import tokenize
from tests.real_data import data_folder, needs_data

pytestmark = pytest.mark.usefixtures("offline")

EVERY = [("characters", None), ("bytes", None), ("bpe", 256), ("bpe", 600)]
ODD = (
    "",
    "a",
    "  two  spaces\tand a tab ",
    "one\r\ntwo\r\n\r\nthree\rfour\n\n\n",
    "👩‍👩‍👧 says 🏳️‍🌈 to 日本語 and e\u0301, क्षि",
    "\ufeffmark\x00zero\x1cgroup\x85next\u2028line\u00a0fixed\u180e",
    "don't WE'LL '' ''s 12,345.678 ___ \U0010ffff",
)


def _file(folder: Path, content: str | bytes, name: str = "mine.txt") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _source(text: str, valid: str = "ab", test: str = "ab") -> Source:
    """Return a text as if read from a file."""
    sha256 = hashlib.sha256("|".join((text, valid, test)).encode()).hexdigest()
    return Source("mine.txt", sha256, text, valid, test)


def _embedded(kind: str = "bpe", vocabulary: int | None = None) -> TokenText:
    return load_tokens("shakespeare-50k", tokens=kind, vocabulary=vocabulary)


# The way back


@pytest.mark.parametrize(("kind", "vocabulary"), EVERY)
def test_parts_are_those_of_the_characters_whatever_the_tokens(kind: str, vocabulary: int | None) -> None:
    known, text = load_text("shakespeare-50k"), _embedded(kind, vocabulary)
    for part in ("train", "valid", "test"):
        letters = "".join(known.alphabet[i] for i in getattr(known, part).tolist())
        numbers = getattr(text, part)
        assert text.decode(numbers) == letters
        assert torch.equal(text.encode(letters), numbers)
        assert text.tokenizer.num_characters(numbers) == len(letters)
        assert getattr(text.characters_per_token, part) == len(letters) / len(numbers)
        assert getattr(text.bytes_per_token, part) == len(letters.encode()) / len(numbers)
        assert int(numbers.max()) < text.vocabulary
    assert (text.name, text.sha256, text.tokenization) == (known.name, known.sha256, kind)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("vocabulary", [None, 256, 600])
def test_odd_texts_come_back(odd: str, vocabulary: int | None) -> None:
    text = _embedded("bytes" if vocabulary is None else "bpe", vocabulary)
    found = text.encode(odd)
    assert text.decode(found) == odd
    assert text.tokenizer.num_characters(found) == len(odd)


@settings(deadline=None, max_examples=100)
@given(st.text())
def test_any_text_comes_back(any_text: str) -> None:
    text = _embedded("bpe", 600)
    assert text.decode(text.encode(any_text)) == any_text


@pytest.mark.parametrize("kind", TOKENS)
def test_odd_texts_of_a_file_come_back(kind: str, tmp_path: Path) -> None:
    content = "".join(ODD) * 40
    vocabulary = 300 if kind == "bpe" else None
    path = _file(tmp_path, gzip.compress(content.encode()), "odd.txt.gz")
    text = load_tokens(path, tokens=kind, vocabulary=vocabulary)
    assert "".join(text.decode(part) for part in (text.train, text.valid, text.test)) == content
    assert (text.name, text.sha256) == ("odd.txt.gz", hashlib.sha256(content.encode()).hexdigest())


@needs_data("text/tinyshakespeare.txt")
def test_a_whole_text_comes_back() -> None:
    folder = data_folder()
    text = load_tokens("shakespeare", folder, "bpe", 1024)
    known = load_text("shakespeare", folder)
    for part, numbers in ((known.valid, text.valid), (known.test, text.test)):
        assert text.decode(numbers) == "".join(known.alphabet[i] for i in part.tolist())
    assert text.tokenizer.num_characters(text.train) == len(known.train)
    assert 2 < text.characters_per_token.valid < 3.5


# Characters and bytes


def test_characters_are_numbered_as_in_the_characters_of_a_text() -> None:
    known, text = load_text("shakespeare-50k"), _embedded("characters")
    assert text.vocabulary == known.classes
    assert text.characters_per_token == (1, 1, 1)
    for part in ("train", "valid", "test"):
        assert torch.equal(getattr(text, part), getattr(known, part))


def test_an_unknown_character_is_one_character_and_comes_back_as_a_mark(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="do not occur in the training part"):
        text = load_tokens(_file(tmp_path, "ab" * 45 + "axyab" + "abzéz"))
    assert (text.vocabulary, text.test.tolist()) == (3, [0, 1, 2, 2, 2])
    assert (text.decode(text.test), text.tokenizer.num_characters(text.test)) == ("ab" + 3 * "\ufffd", 5)
    assert text.bytes_per_token == (1, 1, 6 / 5)  # of the text itself


def test_bytes_are_those_of_utf8(tmp_path: Path) -> None:
    content = "é\r\n𝛿→" * 20
    text = load_tokens(f"text:{_file(tmp_path, content)}", tokens="bytes")
    assert bytes(text.train.tolist()) == content[:90].encode()
    assert (text.vocabulary, text.train.dtype) == (256, torch.uint8)
    assert text.bytes_per_token == (1, 1, 1)
    assert text.characters_per_token.train == 90 / len(content[:90].encode())
    assert text.tokenizer.num_characters(text.train[1:3]) == 1  # the rest of a character, and a whole one
    assert text.decode(text.train[:1]) == "\ufffd"


@pytest.mark.parametrize(("letters", "dtype"), [(255, torch.uint8), (256, torch.int32)])
def test_tokens_are_bytes_where_they_fit(letters: int, dtype: torch.dtype, tmp_path: Path) -> None:
    alphabet = "".join(chr(0x100 + i) for i in range(letters))
    text = load_tokens(_file(tmp_path, alphabet * 20))
    assert (text.vocabulary, text.train.dtype) == (letters + 1, dtype)
    assert text.train[:letters].tolist() == list(range(letters))


# Byte pairs


def test_the_pair_that_occurs_most_is_joined_first() -> None:
    text = tokenize(_source("aab aab aab aab xab xab " * 10, "aab", "xab"), "bpe", 258)
    assert text.tokenizer.pieces[256:] == (b"ab", b"aab")
    assert [text.tokenizer.pieces[i] for i in text.encode("xab aaba").tolist()] == [
        *(b"x", b"ab", b" "),
        *(b"aab", b"a"),
    ]


def test_every_byte_has_a_number_so_that_any_text_can_be_written() -> None:
    text = _embedded("bpe", 600)
    assert sorted(text.tokenizer.pieces[:256]) == [bytes([i]) for i in range(256)]
    assert len(set(text.tokenizer.pieces)) == text.vocabulary == 600


def test_pairs_come_from_the_training_part_alone() -> None:
    train = "the cat sat on the mat " * 5
    one = tokenize(_source(train, "qu " * 99), "bpe", 262)
    other = tokenize(_source(train, "zz " * 99), "bpe", 262)
    assert one.tokenizer.pieces == other.tokenizer.pieces
    assert torch.equal(one.train, other.train)


def test_characters_of_a_slice_are_those_that_begin_in_it() -> None:
    text = tokenize(_source("日本語 " * 50), "bpe", 260)
    found = text.encode("日本 日本語 é")
    for cut in range(len(found) + 1):
        begun = b"".join(text.tokenizer.pieces[i] for i in found[:cut].tolist())
        expected = sum(begun[k] & 0xC0 != 0x80 for k in range(len(begun)))
        assert text.tokenizer.num_characters(found[:cut]) == expected
        assert expected + text.tokenizer.num_characters(found[cut:]) == 8


SPACED = "ab'1 \n\r\t\u00a0\u2028\x1c\x85é!"


@settings(deadline=None, max_examples=200)
@given(st.text(st.sampled_from(SPACED), max_size=60), st.integers(1, 9))
def test_a_text_that_is_cut_between_words_has_the_same_tokens(any_text: str, size: int) -> None:
    # Any two neighbours occur in it, so that spaces and what is no letter are joined too.
    text = tokenize(_source("".join(random.Random(0).choices(SPACED, k=8000))), "bpe", 400)
    whole = text.encode(any_text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_PIECE", size)
        assert "".join(tokens._cut(any_text)) == any_text
        assert torch.equal(text.encode(any_text), whole)


def test_a_text_that_is_cut_gives_the_same_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _embedded("bpe", 700)
    tokens._byte_pairs.cache_clear()
    monkeypatch.setattr(tokens, "_PIECE", 100)
    cut = _embedded("bpe", 700)
    assert cut is not whole
    assert cut.tokenizer.pieces == whole.tokenizer.pieces
    assert torch.equal(cut.train, whole.train)


def test_another_process_finds_the_same_tokens_and_loads_the_library_when_it_is_used() -> None:
    code = (
        "import hashlib, sys; from synthgrad.lab.tasks import load_tokens; load_tokens('shakespeare-50k'); "
        "print('tokenizers' in sys.modules); "
        "t = load_tokens('shakespeare-50k', tokens='bpe', vocabulary=600); "
        "print(hashlib.sha256(repr((t.tokenizer.pieces, t.train.tolist())).encode()).hexdigest())"
    )
    text = _embedded("bpe", 600)
    here = hashlib.sha256(repr((text.tokenizer.pieces, text.train.tolist())).encode()).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120, env=environment
    )
    assert (done.stdout, done.stderr) == (f"False\n{here}\n", "")


def test_training_is_done_once_for_a_text_and_a_vocabulary(tmp_path: Path) -> None:
    path = _file(tmp_path, "the cat sat on the mat " * 20)
    first = load_tokens(path, tokens="bpe", vocabulary=262)
    assert load_tokens(path, tokens="bpe", vocabulary=262) is first
    assert load_tokens(path, tokens="bpe", vocabulary=261).vocabulary == 261
    path.write_text("a dog ran in the fog " * 20)
    assert load_tokens(path, tokens="bpe", vocabulary=262).decode(first.train) != first.decode(first.train)


@pytest.mark.parametrize("before", [None, "true"])
def test_the_library_counts_without_threads_and_the_environment_stays(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "TOKENIZERS_PARALLELISM"
    monkeypatch.delenv(name, raising=False)
    if before:
        monkeypatch.setenv(name, before)
    tokens._byte_pairs.cache_clear()
    seen: list[str | None] = []
    cut = tokens._cut
    monkeypatch.setattr(tokens, "_cut", lambda text: seen.append(os.environ.get(name)) or cut(text))
    tokenize(_source("the cat sat on the mat " * 6), "bpe", 260)
    assert seen[0] == "false"  # while it is trained
    assert os.environ.get(name) == before


def test_loss_converts_to_bits_per_byte_and_character() -> None:
    """A model that knows nothing: the logarithm of the vocabulary for every token, spread over what tokens hold."""
    text = tokenize(_source("é日 " * 40, "é日 " * 10), "bpe", 260)
    per_token = math.log2(text.vocabulary)
    assert per_token / text.bytes_per_token.valid == pytest.approx(per_token * len(text.valid) / 60)
    assert per_token / text.characters_per_token.valid == pytest.approx(per_token * len(text.valid) / 30)


def test_to_device_moves_every_part() -> None:
    moved = _embedded("bpe", 600).to(torch.device("meta"))
    assert {part.device.type for part in (moved.train, moved.valid, moved.test)} == {"meta"}


# What cannot be


def test_unknown_tokens_list_those_accepted() -> None:
    with pytest.raises(ConfigError, match="tokens 'words' are unknown; accepted: characters, bytes, bpe"):
        _embedded("words")


@pytest.mark.parametrize("vocabulary", [255, 0, -1])
def test_vocabulary_without_room_for_bytes_is_refused(vocabulary: int) -> None:
    with pytest.raises(ConfigError, match=f"vocabulary of {vocabulary}: expected at least 256"):
        _embedded("bpe", vocabulary)


def test_byte_pairs_want_a_vocabulary() -> None:
    with pytest.raises(ConfigError, match="tokens 'bpe' without a vocabulary"):
        _embedded("bpe")


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_a_vocabulary_that_follows_from_the_text_is_not_asked_for(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"vocabulary of 600 for tokens '{kind}'.*leave it out"):
        _embedded(kind, 600)


@pytest.mark.parametrize("vocabulary", [260, 1_000_000, 10**15])
def test_vocabulary_that_the_text_does_not_allow_says_how_many_there_are(vocabulary: int) -> None:
    source = _source("ab " * 20 + "once")  # "ab", " ab"
    with pytest.raises(DataError) as caught:
        tokenize(source, "bpe", vocabulary)
    said = str(caught.value)
    assert f"mine.txt: is too short for a vocabulary of {vocabulary}" in said
    assert "ask for at most 258" in said
    assert tokenize(source, "bpe", 258).vocabulary == 258


@pytest.mark.parametrize(("kind", "vocabulary"), EVERY)
@pytest.mark.parametrize("content", [b"", b"x" * (MIN_CHARACTERS - 1)], ids=["empty", "short"])
def test_empty_and_short_files_are_refused(
    kind: str, vocabulary: int | None, content: bytes, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"has {len(content)} characters, expected at least {MIN_CHARACTERS}"):
        load_tokens(_file(tmp_path, content), tokens=kind, vocabulary=vocabulary)


@pytest.mark.parametrize("kind", TOKENS)
def test_file_that_is_not_utf8_is_refused(kind: str, tmp_path: Path) -> None:
    path = _file(tmp_path, b"a" * 50 + b"\xff" + b"b" * 50)
    with pytest.raises(DataError, match=r"mine\.txt: byte 50 is not UTF-8"):
        load_tokens(path, tokens=kind, vocabulary=300 if kind == "bpe" else None)


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens._byte_pairs.cache_clear()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert _embedded("bytes").vocabulary == 256
    with pytest.raises(ConfigError, match=r"not installed; run pip install 'synthgrad\[lab\]'"):
        _embedded("bpe", 600)


def test_names_and_paths_are_those_of_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _file(tmp_path, "ab" * 50, "ptb")
    monkeypatch.chdir(tmp_path)
    for load in (load_text, load_tokens):
        assert load("text:ptb").train.tolist() == load(Path("ptb")).train.tolist() == [0, 1] * 45
        with pytest.raises(DataError, match="cannot be downloaded from anywhere"):
            load("ptb")
        with pytest.raises(ConfigError, match="text 'text:none' is neither a known text nor a file"):
            load("text:none")

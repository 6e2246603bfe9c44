"""Texts as tokens: characters, bytes of UTF-8, or pairs of bytes that were joined where they often stand together."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core import ConfigError, DataError
from .text import Source, code_points, numbers_of, to_text

__all__ = ["TOKENS", "PerPart", "TokenText", "Tokenizer", "tokenize"]

#: What tokens can be.
TOKENS: Mapping[str, str] = {
    "characters": "characters of the training part; all others are one unknown character",
    "bytes": "bytes of UTF-8",
    "bpe": "byte-level byte-pair encoding, trained on the training part",
}

_NUM_BYTES = 256
#: A pair of tokens that stands together less often is not joined.
_MIN_FREQUENCY = 2
#: Approximate number of characters that the library encodes at once: it needs more than a hundred bytes of memory for each.
_PIECE = 1 << 20
#: Words begin with the space before them, so a text can be cut before any space that follows something else.
_BETWEEN_WORDS = re.compile(r"(?<=\S)(?=[ \n\r\t])")


@dataclass(frozen=True, slots=True, eq=False)
class Tokenizer:
    """Turns texts into numbers and back.

    Attributes:
        name: one of `TOKENS`.
        pieces: what each number stands for, in UTF-8; a piece may be a part of a character.
        numbers: function from a text to the numbers of its tokens, ``(N,)``.
    """

    name: str
    pieces: tuple[bytes, ...]
    numbers: Callable[[str], NDArray[Any]]

    @property
    def vocabulary(self) -> int:
        """The number of different tokens."""
        return len(self.pieces)

    def encode(self, text: str) -> Tensor:
        """Return the tokens of a text, ``(N,)``; uint8 if `vocabulary` is at most 256, else int32."""
        dtype = np.uint8 if self.vocabulary <= _NUM_BYTES else np.int32
        return torch.from_numpy(self.numbers(text).astype(dtype))

    def decode(self, tokens: Tensor) -> str:
        """Return the text of tokens ``(N,)``. A character that is unknown or not complete becomes U+FFFD."""
        return b"".join(map(self.pieces.__getitem__, tokens.tolist())).decode("utf-8", errors="replace")

    def num_characters(self, tokens: Tensor) -> int:
        """Return how many characters begin in tokens ``(N,)``: over all tokens of a text, its length."""
        counts = torch.bincount(tokens.long(), minlength=self.vocabulary).tolist()
        return sum(n * _num_begun(piece) for n, piece in zip(counts, self.pieces, strict=True) if n)


class PerPart(NamedTuple):
    """A figure of each part of a text."""

    train: float
    valid: float
    test: float


@dataclass(frozen=True, slots=True, eq=False)
class TokenText:
    """A text in three parts, as tokens. The parts have the same characters whatever the tokens are.

    A loss of ``l`` nats per token is about ``l / ln 2 / characters_per_token.valid`` bits per character of the
    validation part, and ``l / ln 2 / bytes_per_token.valid`` bits per byte. (`token_loss` does not count the first
    token, which is not predicted.)

    Attributes:
        name: name in ``synthgrad list``, or the name of the file.
        train, valid, test: tokens, ``(N,)``; uint8 if `vocabulary` is at most 256, else int32.
        tokenizer: what made them.
        bytes_per_token, characters_per_token: size of each part, in UTF-8 and in characters, over its number of tokens.
        sha256: SHA-256 of the source, for records; for several files, the SHA-256 of their sums.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    tokenizer: Tokenizer
    bytes_per_token: PerPart
    characters_per_token: PerPart
    sha256: str

    @property
    def vocabulary(self) -> int:
        """The number of different tokens, and of outputs that a network needs."""
        return self.tokenizer.vocabulary

    @property
    def tokenization(self) -> str:
        """What tokens are: one of `TOKENS`."""
        return self.tokenizer.name

    def encode(self, text: str) -> Tensor:
        """Return the tokens of a text, ``(N,)``, of the dtype of the parts."""
        return self.tokenizer.encode(text)

    def decode(self, tokens: Tensor) -> str:
        """Return the text of tokens ``(N,)``. A character that is unknown or not complete becomes U+FFFD."""
        return self.tokenizer.decode(tokens)

    def to(self, device: torch.device) -> TokenText:
        """Return the text with all parts on a device."""
        return replace(
            self, train=self.train.to(device), valid=self.valid.to(device), test=self.test.to(device)
        )


def tokenize(source: Source, tokens: str = "characters", vocabulary: int | None = None) -> TokenText:
    """Turn a text into tokens.

    Byte pairs are those of GPT-2 (Sennrich et al. 2016; Radford et al. 2019, §2.2): words are split as there, and the
    most frequent pair of neighbours within words becomes a new token, until there are enough. They are chosen from the
    training part alone, and the same text gives the same tokens in every process. The last two results are kept.

    Args:
        source: the text.
        tokens: one of `TOKENS`.
        vocabulary: number of tokens, of which 256 are single bytes; for ``bpe`` only.

    Raises:
        ConfigError: if the tokens are unknown, the vocabulary is missing, too small or not for these tokens, or the
            package ``tokenizers`` is not installed.
        DataError: if the text has too many different characters, or too few pairs for the vocabulary.
    """
    if tokens not in TOKENS:
        raise ConfigError(f"tokens '{tokens}' are unknown; accepted: {', '.join(TOKENS)}")
    if tokens == "bpe":
        if vocabulary is None:
            raise ConfigError(
                "tokens 'bpe' without a vocabulary; say how many tokens there are to be, such as 1024"
            )
        if vocabulary < _NUM_BYTES:
            raise ConfigError(
                f"vocabulary of {vocabulary}: expected at least {_NUM_BYTES}, the single bytes; ask for more tokens"
            )
        return _byte_pairs(source, vocabulary)
    if vocabulary is not None:
        raise ConfigError(
            f"vocabulary of {vocabulary} for tokens '{tokens}': their number follows from the text; leave it out, or "
            "take tokens 'bpe'"
        )
    return _tokenized(source, _bytes() if tokens == "bytes" else _characters(to_text(source).alphabet))


def _tokenized(source: Source, tokenizer: Tokenizer) -> TokenText:
    texts = (source.train, source.valid, source.test)
    train, valid, test = parts = [tokenizer.encode(text) for text in texts]
    in_bytes = (len(text.encode()) / len(part) for text, part in zip(texts, parts, strict=True))
    in_characters = (len(text) / len(part) for text, part in zip(texts, parts, strict=True))
    return TokenText(
        source.name,
        train,
        valid,
        test,
        tokenizer,
        bytes_per_token=PerPart(*in_bytes),
        characters_per_token=PerPart(*in_characters),
        sha256=source.sha256,
    )


def _num_begun(piece: bytes) -> int:
    """Return the number of characters that begin in a piece: its bytes but for those that continue a character."""
    return sum(byte & 0xC0 != 0x80 for byte in piece)


def _characters(alphabet: tuple[str, ...]) -> Tokenizer:
    pieces = (*(letter.encode() for letter in alphabet), "\ufffd".encode())
    return Tokenizer("characters", pieces, partial(_numbers_of_characters, numbers_of(alphabet)))


def _numbers_of_characters(numbers: NDArray[Any], text: str) -> NDArray[Any]:
    return numbers[code_points(text)]


def _bytes() -> Tokenizer:
    return Tokenizer("bytes", tuple(bytes([i]) for i in range(_NUM_BYTES)), _numbers_of_bytes)


def _numbers_of_bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)


@lru_cache(maxsize=2)
def _byte_pairs(source: Source, vocabulary: int) -> TokenText:
    try:
        from tokenizers import Tokenizer as LibraryTokenizer
        from tokenizers import models, pre_tokenizers, trainers
    except ImportError as error:
        raise ConfigError(
            "tokens 'bpe': the package tokenizers is not installed; run pip install 'synthgrad[lab]'"
        ) from error
    library = LibraryTokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # It makes room for as many at once; a text of N bytes has fewer than N pairs to join.
    most = _NUM_BYTES + len(source.train.encode())
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocabulary, most),
        min_frequency=_MIN_FREQUENCY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with _one_thread():
        library.train_from_iterator(_cut(source.train), trainer)
    if (found := library.get_vocab_size()) < vocabulary:
        raise DataError(
            f"{source.name}: is too short for a vocabulary of {vocabulary}: the pairs that occur {_MIN_FREQUENCY} times or "
            f"more make {found} tokens; ask for at most {found}, or name a longer text"
        )
    byte_of = _byte_of_letter()
    by_number = sorted(library.get_vocab().items(), key=lambda item: item[1])
    pieces = tuple(bytes(byte_of[letter] for letter in token) for token, _ in by_number)
    return _tokenized(source, Tokenizer("bpe", pieces, partial(_numbers_of_pairs, library)))


def _numbers_of_pairs(library: Any, text: str) -> NDArray[np.int32]:
    found = [np.array(library.encode(piece).ids, np.int32) for piece in _cut(text)]
    return np.concatenate(found) if found else np.zeros(0, np.int32)


def _cut(text: str) -> Iterator[str]:
    """Yield the pieces of a text, cut between words, so that each has the tokens that it has in the whole."""
    start = 0
    while start < len(text):
        found = _BETWEEN_WORDS.search(text, start + _PIECE)
        end = found.start() if found else len(text)
        yield text[start:end]
        start = end


def _byte_of_letter() -> dict[str, int]:
    """Return the byte that each letter of the library stands for.

    Printable bytes stand for themselves as in Latin-1, the others in order for the letters from U+0100 (GPT-2).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(_NUM_BYTES) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


@contextmanager
def _one_thread() -> Generator[None]:
    """Let the library count in this thread: threads of its own would make it complain about every later fork."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before

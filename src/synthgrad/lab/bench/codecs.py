"""``bench codecs``: what the codecs of activations and messages cost, in bytes, in time and in error.

Tensors are drawn at random, one standard deviation in every feature. Each is encoded and decoded in turn with those of
all other codecs. What a codec does to a training is another matter: this says what it does to a step and to a wire.

What is encoded is also deflated by zlib, with Huffman's code alone: the entropy coding of which the standard library is
capable, without a search for repetitions, of which there are none. No stage does that; the figures say what it would bring.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...engines.codecs import Codec, cast
from ..training.codec_names import codec_from
from .base import Bench, Figures, reason_of
from .pipeline.declared import CODECS, CodecsScope
from .turns import TimedStep, median_and_spread, take_turns, warmed_up

__all__ = ["BENCHMARK", "CodecsBench", "CodecSize", "codec_named"]

_FLOAT_BYTES = 4
#: What is timed.
_STEPS = ("encode", "decode", "deflate", "inflate")
#: zlib's number for a stream without header and checksum, and a window of 32 KiB.
_RAW_DEFLATE = -15
#: What the laboratory calls them, where it has another name.
_NAMES = {
    "8_bits": "8bits",
    "4_bits": "4bits",
    "subspace_32": "subspace:32",
    "subspace_32_8_bits": "subspace:32:8bits",
    "largest_1_16": f"largest:{1 / 16}",
    "largest_1_64": f"largest:{1 / 64}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSize:
    """The size of a tensor.

    Attributes:
        seed: seed of its values.
        width: features of a token.
        tokens: tokens in a batch.
    """

    seed: int
    width: int
    tokens: int


def codec_named(name: str) -> Codec:
    """Return a codec by its name in the benchmark."""
    return codec_from(_NAMES.get(name, name)) or cast(torch.float32)


class CodecsBench(Bench[CodecsScope, CodecSize, str]):
    """Every codec on a tensor of ``(tokens, width)`` in float32."""

    declared = CODECS
    axes = {"seed": "seeds", "width": "widths", "tokens": "tokens"}
    size = CodecSize
    optimizer = ""

    def cases(self, scope: CodecsScope, size: CodecSize) -> Sequence[str]:
        """Return the names of the codecs."""
        return scope.methods

    def cell(self, scope: CodecsScope, size: CodecSize, case: str) -> Mapping[str, Any]:
        return {
            "width": size.width,
            "tokens": size.tokens,
            "threads": scope.threads,
            "codec": codec_named(case).name,
        }

    def config(self, scope: CodecsScope, size: CodecSize, case: str) -> Mapping[str, Any]:
        return {"seconds": scope.seconds}

    def label(self, scope: CodecsScope, size: CodecSize) -> str:
        return f"{size.tokens} tokens of {size.width} features"

    def measure(self, scope: CodecsScope, size: CodecSize, cases: Sequence[str]) -> Iterator[Figures]:
        torch.set_num_threads(scope.threads)
        drawn = torch.Generator().manual_seed(size.seed)
        t = torch.randn(size.tokens, size.width, generator=drawn).to(scope.device)
        timed: dict[tuple[str, str], TimedStep] = {}
        failed: dict[tuple[str, str], str] = {}
        errors: dict[str, float] = {}
        deflated_bytes: dict[str, int] = {}
        for name in cases:
            codec = codec_named(name)
            try:
                data = codec.encode(t)
                errors[name] = float((_decoded(codec, data, t) - t).norm() / t.norm())
                raw = data.contiguous().view(torch.uint8).cpu().numpy().tobytes()
                deflated = _deflated(raw)
                deflated_bytes[name] = len(deflated)
                steps = {
                    "encode": partial(codec.encode, t),
                    "decode": partial(_decoded, codec, data, t),
                    "deflate": partial(_deflated, raw),
                    "inflate": partial(zlib.decompress, deflated, _RAW_DEFLATE),
                }
                for what, step in steps.items():
                    timed[name, what] = warmed_up(step, scope.seconds, scope.device)
            except Exception as error:  # a codec that fails is a line that says so
                failed[name, "encode"] = reason_of(error)
        failed |= take_turns(timed, scope.rounds, scope.device)
        for name in cases:
            reason = next((failed[name, what] for what in _STEPS if (name, what) in failed), None)
            if reason:
                yield Figures(error=reason)
            else:
                yield Figures(_figures(name, size, timed, errors[name], deflated_bytes[name]))


def _decoded(codec: Codec, data: Tensor, like: Tensor) -> Tensor:
    return codec.decode(data, like.shape, like.device, like.dtype)


def _deflated(data: bytes) -> bytes:
    deflate = zlib.compressobj(1, zlib.DEFLATED, _RAW_DEFLATE, zlib.DEF_MEM_LEVEL, zlib.Z_HUFFMAN_ONLY)
    return deflate.compress(data) + deflate.flush()


def _figures(
    name: str,
    size: CodecSize,
    timed: Mapping[tuple[str, str], TimedStep],
    error: float,
    deflated_bytes: int,
) -> dict[str, Any]:
    num_bytes = codec_named(name).num_bytes((size.tokens, size.width))
    kilobytes = _FLOAT_BYTES * size.tokens * size.width / 1000
    found: dict[str, Any] = {
        "sent_bytes_per_token": num_bytes / size.tokens,
        "bits_per_value": 8 * num_bytes / (size.tokens * size.width),
        "relative_error": error,
        "deflated_bytes_per_token": deflated_bytes / size.tokens,
    }
    for what in _STEPS:
        middle, low, high = median_and_spread(timed[name, what].times_ms)
        found |= {
            f"{what}_ms_median": middle,
            f"{what}_ms_p10": low,
            f"{what}_ms_p90": high,
            f"{what}_us_per_kilobyte": 1e3 * middle / kilobytes,
        }
    found["worth_below_mbit_s"] = _worth_below_mbit_s(
        _FLOAT_BYTES * size.tokens * size.width - num_bytes,
        found["encode_ms_median"] + found["decode_ms_median"],
    )
    found["deflating_worth_below_mbit_s"] = _worth_below_mbit_s(
        num_bytes - deflated_bytes, found["deflate_ms_median"] + found["inflate_ms_median"]
    )
    return found


def _worth_below_mbit_s(saved_bytes: int, took_ms: float) -> float | None:
    """Return the rate below which it takes longer to send what is saved than to save it; None if nothing is."""
    return 8 * saved_bytes / (took_ms * 1e-3) / 1e6 if saved_bytes > 0 else None


BENCHMARK = CodecsBench()

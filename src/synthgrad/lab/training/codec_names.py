"""Codecs by the names that the command line has for them."""

from __future__ import annotations

import torch

from ...core import ConfigError
from ...engines import codecs
from ...engines.codecs import Codec

__all__ = ["EXAMPLES", "codec_from"]

#: What may be asked for.
EXAMPLES = ("float32", "bfloat16", "8bits", "4bits", "subspace:32", "subspace:32:8bits", "largest:0.0625")


def codec_from(name: str) -> Codec | None:
    """Return a codec by its name; None for ``float32``, which sends tensors as they are.

    Raises:
        ConfigError: if there is none of that name, or a number in it is out of range.

    >>> codec_from("subspace:16:8bits").name
    'subspace of 16 features, seed 0, 8 bits in blocks of 64'
    """
    kind, _, rest = name.partition(":")
    plain = {
        "bfloat16": lambda: codecs.cast(torch.bfloat16),
        "8bits": codecs.blocks,
        "4bits": lambda: codecs.blocks(4),
    }
    if not rest and kind == "float32":
        return None
    if not rest and kind in plain:
        return plain[kind]()
    try:
        if kind == "subspace":
            rank, _, inner = rest.partition(":")
            return codecs.subspace(int(rank), inner=codec_from(inner) if inner else None)
        if kind == "largest":
            return codecs.top_k(float(rest))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
    raise ConfigError(f"codec '{name}': expected one of {', '.join(EXAMPLES)}, with other numbers if need be")

"""Codecs: how activations and messages are sent, as in ``Stages(..., codec=codecs.blocks(8))``.

`Codec` is the protocol, so a program can have a codec of its own. `cast` sends tensors in another dtype, `blocks` whole
numbers of 8 or 4 bits with a scale for every block, `subspace` a projection onto a few directions, `top_k` the largest values
of messages.
"""

from .base import Codec, KeepingCodec, check_codecs
from .blocks import blocks
from .casting import cast
from .subspace import subspace
from .top_k import top_k

__all__ = ["Codec", "KeepingCodec", "blocks", "cast", "check_codecs", "subspace", "top_k"]

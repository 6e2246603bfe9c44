"""Codecs: how activations and messages are sent, as in ``Stages(..., codec=codecs.blocks(8))``.

`Codec` is the protocol, so a program can have a codec of its own. `cast` sends tensors in another dtype, `blocks` whole
numbers of 8 or 4 bits with a scale for every block, `subspace` a projection onto a few directions.
"""

from .base import Codec
from .blocks import blocks
from .casting import cast
from .subspace import subspace

__all__ = ["Codec", "blocks", "cast", "subspace"]

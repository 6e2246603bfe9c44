"""Codecs: what activations and messages are on the wire, as in ``Stages(..., codec=codecs.cast(torch.bfloat16))``.

`Codec` says what one does, so a program can bring its own. `cast` sends tensors in another dtype.
"""

from .base import Codec
from .casting import cast

__all__ = ["Codec", "cast"]

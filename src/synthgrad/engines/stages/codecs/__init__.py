"""Codecs: how activations and messages are sent, as in ``Stages(..., codec=codecs.cast(torch.bfloat16))``.

`Codec` is the protocol, so a program can have a codec of its own. `cast` sends tensors in another dtype.
"""

from .base import Codec
from .casting import cast

__all__ = ["Codec", "cast"]

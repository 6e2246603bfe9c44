"""The true gradient as a rule: the module below waits for it. With lags, the delayed gradient."""

from __future__ import annotations

from torch import Tensor

from ..core import ConfigError, Credit, Info, Message, Rule

__all__ = ["TrueGradient"]


class TrueGradient(Rule):
    """The module below keeps its graph until the message has come, and learns from that.

    Without lags this is backpropagation, interface by interface. With ``lags={name: Lag(observe=d)}`` in the
    in-process engine it is the *delayed gradient* (Huo et al. 2018, *Decoupled Parallel Backpropagation*;
    Zhuang et al. 2019, *Fully Decoupled Neural Network Learning Using Delayed Gradients*): a module learns
    from a batch ``d`` steps after it has run on it, by the graph of then, with the weights of then. Each
    interface below adds its own lag.

    Args:
        shrink: factor on the gradient at each interface, so that a module learns the less the older its
            gradient is (gradient shrinking, Zhuang et al. 2019); 1 for none.

    Raises:
        ConfigError: if ``shrink`` is out of its range.
    """

    listens = False
    waits = True

    def __init__(self, shrink: float = 1.0) -> None:
        super().__init__()
        if not 0 < shrink <= 1:
            raise ConfigError(f"shrink={shrink!r}: expected a factor over 0 and up to 1")
        self.shrink = shrink

    def extra_repr(self) -> str:
        return f"shrink={self.shrink:g}"

    def credit(self, h: Tensor, info: Info) -> Credit:
        return Credit(None, wait=True)

    def accept(self, message: Message, info: Info) -> Tensor:
        return message.gradient if self.shrink == 1 else message.gradient * self.shrink

"""Error feedback on updates: each update repairs what the one before it did with a late gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon, Optimizer

from ..core import ConfigError

__all__ = ["ErrorFeedback"]

#: Name of the buffer in the state of each parameter.
_LAST = "last_update"


class ErrorFeedback(Optimizer):
    """Wraps an optimizer whose gradients come one update late, so that little is lost by it.

    Let ``u_t`` be the whole update that the wrapped optimizer makes of the gradient at hand, learning rate included. It
    belongs to the weights of one update ago, so it should have been applied then, in place of ``u_{t-1}``, which was.
    Error feedback (arXiv 2606.30634) applies it now and adds that difference::

        x_{t+1} = x_t − (2 u_t − u_{t−1}),    u_{−1} = 0

    Decoupled weight decay, as in AdamW, Muon and Adafactor, is no part of ``u``. It is applied to the weights as usual.

    The formula is for a delay of one update. With a longer delay it still extrapolates over one update only: it corrects
    one of several. Make larger updates instead, of as many microbatches as are under way (``accumulate``), so that no
    gradient is more than one update old.

    Every parameter group counts as late unless it has ``late=False``; such a group is stepped as the wrapped optimizer
    does. In a training loop of your own, set that. The in-process engine and stages set it: modules that learn a step or more
    after their forward pass are late, others and rules are not. Other engines refuse this optimizer, because they do not say
    which of their gradients are late, and fresh ones must not be extrapolated.

    Learning-rate schedulers, ``param_groups``, ``state``, ``state_dict`` and hooks work as with the wrapped optimizer.
    One buffer of the size of the parameters is added.

    Args:
        optimizer: any optimizer of torch that needs no closure.

    Raises:
        ConfigError: if it is no optimizer, needs a closure, or is wrapped already.

    >>> import torch, synthgrad as sg
    >>> w = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = sg.optim.ErrorFeedback(torch.optim.SGD([w], lr=1.0))
    >>> for gradient in (1.0, 1.0, 0.0):
    ...     w.grad = torch.tensor([gradient])
    ...     optimizer.step()
    ...     print(w.item())
    -2.0
    -3.0
    -2.0
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if isinstance(optimizer, ErrorFeedback):
            raise ConfigError("got an optimizer that has error feedback already; wrap it once")
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(
                f"got {type(optimizer).__name__}, expected an optimizer of torch; write "
                "ErrorFeedback(torch.optim.AdamW(parameters, lr=1e-3))"
            )
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ConfigError(
                "got LBFGS, which evaluates the loss again in each step, so that no gradient would be late; take an "
                "optimizer that needs no closure"
            )
        super().__init__(optimizer.param_groups, dict(optimizer.defaults))
        self.optimizer = optimizer
        # Shared, not copied: a scheduler writes rates into the groups, and a state dict holds both states.
        self.param_groups = optimizer.param_groups
        self.state = optimizer.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, to the wrapped optimizer."""
        if hasattr(self, "optimizer"):
            self.optimizer.add_param_group(param_group)
        else:  # torch's constructor, which is given the groups of the wrapped optimizer
            self.param_groups.append(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the wrapped optimizer, with the last update of each parameter in it."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state that `state_dict` returned."""
        self.optimizer.load_state_dict(state_dict)
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make one update.

        Args:
            closure: none; a gradient that is evaluated again would not be late.

        Raises:
            ConfigError: if a closure is given.
        """
        if closure is not None:
            raise ConfigError(
                "got a closure; error feedback is for gradients that have come, call step() without one"
            )
        moved: list[
            tuple[Tensor, Tensor]
        ] = []  # each parameter with what decoupled weight decay alone makes of it
        for group in self.param_groups:
            if group.get("late", True):
                kept = _kept_share(group, self.optimizer)
                moved += [(p, p * kept) for p in group["params"] if p.grad is not None]
        self.optimizer.step()
        for p, decayed in moved:
            update = decayed.sub_(p)
            state = self.state[p]
            extra = update - state[_LAST] if _LAST in state else update
            p.sub_(extra)
            state[_LAST] = update

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer}  # from which a copy is made, see __setstate__

    def __setstate__(self, state: dict[str, Any]) -> None:
        ErrorFeedback.__init__(self, state["optimizer"])

    def __repr__(self) -> str:
        return f"ErrorFeedback({self.optimizer!r})"


def _kept_share(group: dict[str, Any], optimizer: Optimizer) -> float | Tensor:
    """Return the share of a weight that is left by weight decay which acts on the weights, not on the gradient."""
    always = torch.optim.AdamW | Muon | torch.optim.Adafactor
    if isinstance(optimizer, always) or group.get("decoupled_weight_decay"):
        return 1 - group["lr"] * group["weight_decay"]
    return 1.0

"""How good is the credit of each interface, held against the gradient of backpropagation?"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..core import ConfigError, Decoupled, Info
from ..core.graph import first_tensor
from ..core.interface import Interface
from ..core.quality import Quality, quality
from .base import Criterion, forward_args, reduce_loss
from .checks import check_criterion

__all__ = ["credit_quality"]


def credit_quality(
    net: Decoupled,
    criterion: Criterion,
    x: Any = None,
    y: Any = None,
    *,
    context: Tensor | None = None,
    ids: Tensor | None = None,
    step: int = 0,
    **inputs: Any,
) -> dict[str, Quality]:
    """Compare what each rule says with the gradient that backpropagation through the whole network gives for a batch.

    A `Monitor` compares credits with the messages that come, which above a second cut are themselves made of credit. Here
    both are of the same batch and weights, and nothing learns: the network is in evaluation mode meanwhile, and copies of
    the rules are asked. It takes one forward and one backward pass.

    Args:
        net: the network that `decouple` returned.
        criterion: takes output and target, returns a scalar loss, or the loss of each example, ``(B,)``.
        x: the input, as for `InProcess.step`.
        y: the target, as the criterion expects it.
        context: the context of the rules, ``(B, ...)``; by default ``y``, if it is a tensor.
        ids: ``(B,)`` int64, the ids of the examples.
        step: number of the batch, for rules that ask for it.
        **inputs: further keyword arguments of the model.

    Returns:
        The quality by interface. Where a rule gives no credit, such as `TrueGradient`, there is none.

    Raises:
        ConfigError: if it is not a decoupled network.
        CutError: if the batch leaves a cut out.

    >>> import torch, synthgrad as sg
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
    >>> net = sg.decouple(model, ["1"], sg.LocalLoss(3), x)
    >>> list(sg.engines.credit_quality(net, torch.nn.CrossEntropyLoss(), x, y))
    ['1']
    """
    if not isinstance(net, Decoupled):
        raise ConfigError(f"got a {type(net).__name__}, expected what synthgrad.decouple returned")
    check_criterion(criterion)
    args, kwargs = forward_args(x, inputs)
    c = y if context is None and isinstance(y, Tensor) else context
    info = Info(c, ids, step, first_tensor(args, kwargs))
    units = net.units.with_shares(net.units.shares_of(kwargs, c, y))
    reached: dict[str, tuple[Interface, Tensor]] = {}

    def cross(interface: Interface, h: Tensor) -> Tensor:
        # Below it everything may be frozen.
        h = h if h.requires_grad else h.detach().requires_grad_()
        reached[interface.name] = interface, h
        return h.clone() if interface.copies else h

    was_training = {name: module.training for name, module in net.named_modules()}
    net.eval()
    try:
        with torch.enable_grad(), net.crossed_by(cross):
            output = net.model(*args, **kwargs)
            net.check_crossed()
            loss, _ = reduce_loss(criterion(output, y), units)
        # What the loss does not depend on has a gradient of zero.
        grads = torch.autograd.grad(loss, [h for _, h in reached.values()], materialize_grads=True)
        found: dict[str, Quality] = {}
        for (name, (interface, h)), grad in zip(reached.items(), grads, strict=True):
            seen, rule = interface.batch_first(h.detach()), copy.deepcopy(interface.rule)
            rule.check(seen, info)
            delta = rule.credit(seen, info).delta
            if delta is not None:
                true = units.to_example(interface.batch_first(grad), like=seen)
                found[name] = quality(units.counted(delta), true)
    finally:
        for name, module in net.named_modules():
            module.training = was_training[name]
    return found

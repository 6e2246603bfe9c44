"""What a local classifier is to say: labels, distributions, or whatever a loss of the user's own takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import ConfigError, ContextError
from ..core.given import check_whole
from .context_input import IGNORED, index_error

__all__ = ["Loss", "check_loss", "check_num_outputs", "check_target", "losses_of", "mean_of_tokens"]

#: ``loss(outputs, target)``: the loss of each example, ``(B,)``, or its mean over the batch, a scalar.
Loss = Callable[[Tensor, Tensor], Tensor]

#: How far from 1 the sum of a distribution may be, by the precision of its dtype.
_TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 3e-2}


def check_loss(loss: Loss | None) -> None:
    """Refuse what is no loss, or one that sums over the batch.

    Raises:
        ConfigError: if it is not callable, or says that its reduction is ``"sum"``.
    """
    if loss is None:
        return
    if not callable(loss):
        raise ConfigError(f"loss={loss!r}: expected a callable, loss(outputs, target), such as F.mse_loss")
    if getattr(loss, "reduction", None) == "sum":
        raise ConfigError(
            f"loss={loss!r} sums over the batch, and a scalar is taken as the mean over examples; give it "
            "reduction='mean'"
        )


def check_num_outputs(classes: int, loss: Loss | None) -> None:
    """Refuse a number of classes under 2, or of outputs under 1.

    Raises:
        ConfigError: if it is.
    """
    what = "number of classes" if loss is None else "number of outputs that loss takes"
    check_whole("classes", classes, 2 if loss is None else 1, what)


def check_target(
    c: Tensor | None,
    classes: int,
    h: Tensor,
    name: str,
    loss: Loss | None = None,
    *,
    wait: bool = True,
    per_token: bool = False,
) -> None:
    """Refuse a context that cannot be learned from.

    Without a loss of the user's own it is ``(B,)`` integers, or ``(B, classes)`` floats whose rows are
    distributions; with one, anything with ``B`` rows.

    Args:
        c: the context.
        classes: their number, or that of outputs.
        h: the message.
        name: of the interface.
        loss: of the user's own.
        wait: on an accelerator, wait for the device to have looked at a distribution; else, and in a compiled
            graph, the check is queued and stops the program there.
        per_token: there is a target for each token: ``(B, T)`` integers, or ``(B, T, classes)`` floats.

    Raises:
        ContextError: naming the interface.
    """
    if c is None:
        raise ContextError(
            f"interface '{name}': its rule needs labels as context and got none; call net(x, context=y), "
            "or run the network inside `with synthgrad.context(y):`; to predict, net.eval() first"
        )
    size = h.shape[0]
    if loss is not None:
        if c.ndim < 1 or c.shape[0] != size:
            raise ContextError(
                f"interface '{name}': got a target of shape {tuple(c.shape)} for a message of shape {tuple(h.shape)}, "
                f"expected {size} rows, one for each example"
            )
        return
    lead = tuple(h.shape[:2]) if per_token else (size,)
    if tuple(c.shape) != ((*lead, classes) if c.is_floating_point() else lead):
        raise ContextError(
            f"interface '{name}': got labels of shape {tuple(c.shape)} and dtype {c.dtype} for a message of "
            f"shape {tuple(h.shape)}, expected class indices {lead} or a distribution "
            f"{(*lead, classes)}; {_remedy(c, h, per_token)}"
        )
    if c.is_floating_point() and c.numel():
        _check_distribution(c, name, wait)


def _remedy(c: Tensor, h: Tensor, per_token: bool) -> str:
    if per_token:
        return "give a token for each position of the message"
    if h.ndim == 3 and c.shape[:2] == h.shape[:2]:
        return "for a target at each position give the rule head=heads.token_head()"
    return "for other targets give the rule a loss, such as loss=F.mse_loss"


def _check_distribution(c: Tensor, name: str, wait: bool) -> None:
    tolerance = _TOLERANCES.get(c.dtype, 1e-3)
    sums = c.sum(-1)
    message = (
        f"interface '{name}': got a target whose rows are no distribution over classes (entries from 0, sum 1), "
        "which cross entropy needs; give the rule the loss that fits it, such as "
        "loss=F.binary_cross_entropy_with_logits for several labels at once or loss=F.mse_loss for regression"
    )
    # What is not a number compares with nothing, and so is no distribution.
    if torch.compiler.is_compiling() or not (c.is_cpu or wait):
        right = (c >= -tolerance).all() & ((sums - 1).abs() <= tolerance).all()
        torch.ops.aten._assert_async.msg(right, message)
        return
    low, high = torch.aminmax(sums)
    if not (c.min().item() >= -tolerance and low.item() >= 1 - tolerance and high.item() <= 1 + tolerance):
        raise ContextError(message)


def losses_of(
    outputs: Tensor, c: Tensor, name: str, loss: Loss | None = None, ignore: int = IGNORED
) -> Tensor:
    """Return the loss of each example, ``(B,)``: cross entropy where there is no other.

    The mean over the batch of a loss that gives no more is taken as the loss of each of its examples. Of outputs for
    each token the loss of an example is the mean over its tokens that have a target; zero where none has.

    Args:
        outputs: ``(B, classes)``, or ``(B, T, classes)``.
        c: class indices ``(B,)``, distributions ``(B, classes)``, the same with ``T`` behind ``B``, or what ``loss``
            takes.
        name: of the interface.
        loss: the user's own.
        ignore: the class index that means no label; the cross entropy of such an example is zero.

    Raises:
        ContextError: if a class index is out of range.
        ConfigError: if the loss returns something of another shape.
    """
    if loss is not None:
        found = loss(outputs, c)
        if found.ndim == 0:
            return found.expand(outputs.shape[0])
        if tuple(found.shape) != (outputs.shape[0],):
            raise ConfigError(
                f"interface '{name}': loss= returned a tensor of shape {tuple(found.shape)} for {outputs.shape[0]} "
                "examples, expected one number for each or their mean, a scalar; take reduction='mean', or the mean "
                "over the other dimensions: lambda outputs, target: loss(outputs, target).mean(1)"
            )
        return found
    if outputs.ndim == 3:
        flat = losses_of(outputs.flatten(0, 1), c.flatten(0, 1), name, None, ignore)
        return mean_of_tokens(flat.view(outputs.shape[:2]), c, ignore)
    if c.is_floating_point():
        return F.cross_entropy(outputs, c.to(outputs.dtype), reduction="none")
    try:
        return F.cross_entropy(outputs, c.long(), reduction="none", ignore_index=ignore)
    except (IndexError, RuntimeError) as error:
        if "out of bounds" not in str(error):
            raise
        raise index_error(c, outputs.shape[-1], name, ignore) from None


def mean_of_tokens(losses: Tensor, c: Tensor, ignore: int = IGNORED) -> Tensor:
    """Return the mean of the losses of each example over its tokens that have a target, ``(B,)``.

    Args:
        losses: ``(B, T)``; zero where there is no target.
        c: the targets, ``(B, T)`` or ``(B, T, classes)``.
        ignore: the class index that means no target.
    """
    if c.is_floating_point():
        return losses.mean(1)
    # An example without any target has a loss of zero, not 0 / 0.
    return losses.sum(1) / (c != ignore).sum(1).clamp(min=1)

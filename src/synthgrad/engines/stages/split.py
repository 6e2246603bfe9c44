"""The part of a network that one stage runs."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from torch.distributed.pipelining import SplitPoint, pipeline
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]

from ...core import ConfigError, Decoupled, recouple
from ..checks import check_unlockable
from ..sequences import sequences

__all__ = ["check_predictable", "parts"]


def parts(net: Decoupled, example: tuple[Any, ...] | None) -> list[nn.Module]:
    """Return the modules of a decoupled network as parts that run one after the other.

    A Sequential is taken apart as it is; its parts are shared with ``net``. Anything else is traced with
    ``torch.export``, for which an example is needed, and split after the submodules at the cuts.

    Args:
        net: a decoupled network whose modules are a chain.
        example: positional arguments of a forward pass; None if there are none at hand.

    Raises:
        ConfigError: if it cannot be taken apart; says why.
    """
    check_unlockable(net)
    try:
        return list(sequences(net, "engine of stages"))
    except ConfigError as error:
        if not net.graph.is_chain:
            raise
        if example is None:
            raise ConfigError(
                f"{error} (or give an example batch to the engine: torch.export may be able to split the network)"
            ) from error
    return _exported(net, example)


def check_predictable(module: nn.Module, net: Decoupled) -> None:
    """Refuse to run a traced part forward in evaluation mode, if that differs: the trace has fixed the mode.

    Raises:
        ConfigError: naming the submodule, and what to do.
    """
    if not isinstance(module, GraphModule):
        return
    for name, part in net.model.named_modules():
        if isinstance(part, _BatchNorm | _DropoutNd):
            raise ConfigError(
                f"'{name}' is a {type(part).__name__}, and a part that torch.export has traced for training stays in "
                "that mode; call gather(), and evaluate the network itself: net.eval()(x)"
            )


def _exported(net: Decoupled, example: tuple[Any, ...]) -> list[nn.Module]:
    spec = {name: SplitPoint.END for name in net.interfaces}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, about its own trees
            pipe = pipeline(recouple(net), example, split_spec=spec)
        found = [pipe.get_stage_module(k) for k in range(pipe.num_stages)]
    except Exception as error:  # torch.export has many ways to say no
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ConfigError(
            f"the network is no nn.Sequential, and torch.export cannot split it: {lines[0] if lines else error}; "
            "make it a Sequential of blocks with cuts between them"
        ) from error
    if len(found) != len(net.graph.modules):
        raise ConfigError(
            f"torch.export split the network into {len(found)} parts, the cuts ask for {len(net.graph.modules)}; "
            "make it a Sequential of blocks with cuts between them"
        )
    own = dict(net.model.named_parameters()) | dict(net.model.named_buffers())
    for part in found:
        _share(part, own)
    return found


def _share(part: nn.Module, own: dict[str, Any]) -> None:
    """Put the network's own parameters and buffers in place of the copies that the trace has made."""
    for kind in ("_parameters", "_buffers"):
        for path, module in part.named_modules():
            tensors = getattr(module, kind)
            for name in tensors:
                full = f"{path}.{name}" if path else name
                if full in own:
                    tensors[name] = own[full]

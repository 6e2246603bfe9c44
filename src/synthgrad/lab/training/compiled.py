"""Compiles a network in the way that its engine allows."""

from __future__ import annotations

import torch
from torch import nn

from ...core import ConfigError, Decoupled

__all__ = ["compile_modules", "compile_network"]


def compile_network(net: nn.Module, engine: str) -> None:
    """Compile a network in place, in the way that its engine allows.

    For the in-process engine each module of a decoupled network is compiled separately, see `compile_modules`. For other
    engines the whole forward pass is compiled as a single graph; the layer-parallel engine compiles its own step.

    Args:
        net: the network, decoupled or not.
        engine: name of the engine.

    Raises:
        ConfigError: if the modules cannot be compiled separately.
    """
    if isinstance(net, Decoupled) and engine == "in-process":
        compile_modules(net)
    elif engine != "layer-parallel" or not isinstance(net, Decoupled):
        net.forward = torch.compile(net.forward, fullgraph=True)  # pyright: ignore[reportAttributeAccessIssue]


def compile_modules(net: Decoupled) -> None:
    """Compile the forward pass of each child of the network, in place.

    The interfaces, which are forward hooks, are not compiled: the in-process engine runs backward passes and optimizers
    in them, which cannot be part of a graph.

    Raises:
        ConfigError: if a cut lies inside a child.
    """
    children = dict(net.model.named_children())
    if inside := [name for name in net.interfaces if name not in children]:
        raise ConfigError(
            f"cut after '{inside[0]}': modules can be compiled only if all cuts lie after direct children of the network "
            f"({', '.join(children)}); cut there, or do not compile"
        )
    for child in net.model.children():
        child.forward = torch.compile(child.forward, fullgraph=True)

"""Compiling a network as its engine allows."""

from __future__ import annotations

import torch
from torch import nn

from ...core import ConfigError, Decoupled

__all__ = ["compile_modules", "compile_network"]


def compile_network(net: nn.Module, engine: str) -> None:
    """Compile a network in place, as its engine allows.

    The in-process engine of a decoupled network has each module compiled by itself, see `compile_modules`;
    every other loop the whole forward pass, which must be one graph.

    Args:
        net: the network, decoupled or not.
        engine: ``in-process``, ``plain``, or the hand-written loop; the layer-parallel engine compiles its own step.

    Raises:
        ConfigError: if its modules cannot be compiled one by one.
    """
    if isinstance(net, Decoupled) and engine == "in-process":
        compile_modules(net)
    elif engine != "layer-parallel" or not isinstance(net, Decoupled):
        net.forward = torch.compile(net.forward, fullgraph=True)  # pyright: ignore[reportAttributeAccessIssue]


def compile_modules(net: Decoupled) -> None:
    """Compile the forward pass of each child of the network, in place.

    The interfaces, which are forward hooks, stay outside: the unlocked engine runs backward passes and
    optimizers in them, which no graph can hold.

    Raises:
        ConfigError: if a cut lies inside a child.
    """
    children = dict(net.model.named_children())
    if inside := [name for name in net.interfaces if name not in children]:
        raise ConfigError(
            f"cut after '{inside[0]}': modules are compiled one by one only where cuts lie after the network's "
            f"own children ({', '.join(children)}); cut there or do not compile"
        )
    for child in net.model.children():
        child.forward = torch.compile(child.forward, fullgraph=True)

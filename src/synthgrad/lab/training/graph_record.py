"""The decoupled graph of a run for its record: modules, interfaces, and the rule at each interface."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from ...core import Decoupled
from ...core.graph import OUTPUT

__all__ = ["describe_graph"]


def describe_graph(net: nn.Module, engine: str) -> dict[str, Any]:
    """Return the modules and interfaces of a network, with their numbers of parameters, as values for JSON.

    Args:
        net: a decoupled network, or a plain one, which counts as a single module.
        engine: name of the engine that trains it.
    """
    if not isinstance(net, Decoupled):
        names = [name for name, _ in net.named_parameters()]
        return {"engine": "backprop", "modules": [_module(net, (OUTPUT,), (), names)], "interfaces": []}
    return {
        "engine": engine,
        "modules": [_module(net.model, m.ends, m.inputs, m.parameters) for m in net.graph.modules],
        "interfaces": [
            {
                "name": name,
                "shape": list(net.graph.sites[name].shape[1:]),
                "rule": f"{type(interface.rule).__name__}({interface.rule.extra_repr()})",
                "num_parameters": sum(p.numel() for p in interface.rule.parameters()),
                "observes": interface.rule.listens,
            }
            for name, interface in net.interfaces.items()
        ],
    }


def _module(
    model: nn.Module, ends: Iterable[str], inputs: Iterable[str], parameters: Iterable[str]
) -> dict[str, Any]:
    ends, names = list(ends), list(parameters)
    return {
        "name": "+".join(ends),
        "ends": ends,
        "inputs": list(inputs),
        "parts": _parts(model, names),
        "num_parameters": sum(model.get_parameter(n).numel() for n in names),
    }


def _parts(model: nn.Module, parameters: Sequence[str]) -> list[str]:
    """Return the largest submodules that have these parameters and no others.

    If the network is a single container, the names are relative to the container.
    """
    prefix = ""
    children = list(model.named_children())
    while len(children) == 1 and list(children[0][1].children()):
        prefix += children[0][0] + "."
        children = list(children[0][1].named_children())
    others = [n for n, _ in model.named_parameters() if n not in set(parameters)]
    return list(dict.fromkeys(_largest(name, prefix, others) for name in parameters))


def _largest(name: str, prefix: str, others: Sequence[str]) -> str:
    """Return the largest submodule that has a parameter and none of the others."""
    path = name.removeprefix(prefix).split(".")
    for depth in range(1, len(path)):
        part = ".".join(path[:depth])
        if not any(other.startswith(f"{prefix}{part}.") for other in others):
            return part
    return ".".join(path)  # its submodule has parameters of other modules too, so the parameter stands alone

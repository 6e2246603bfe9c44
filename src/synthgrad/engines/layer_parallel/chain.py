"""Takes a decoupled network apart into modules that can run one by one, each fed by what the last one made."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ...core import ConfigError, Decoupled
from ...core.interface import Interface
from ..checks import check_unlockable

__all__ = ["has_hooks", "take_apart"]


def take_apart(net: Decoupled) -> list[nn.Sequential]:
    """Return the network's modules in the order of the forward pass, as sequences of the model's own parts.

    The hooks at cuts let code of any form be trained in order; all at once is another matter: a module must be
    callable alone. So the network has to be an ``nn.Sequential``, perhaps of others, with cuts between its parts.

    Args:
        net: a decoupled network; its parts are shared, not copied.

    Raises:
        ConfigError: if modules branch, a cut lies inside a part, synthetic inputs or waiting rules are asked
            for, or a container has hooks, which would not run.
    """
    check_unlockable(net)
    for name, interface in net.interfaces.items():
        if interface.input_rule is not None:
            raise ConfigError(
                f"interface '{name}' has synthetic inputs: in the layer-parallel engine no module waits for "
                "another as it is; decouple without inputs, or use InProcess"
            )
        if interface.rule.waits:
            raise ConfigError(
                f"the rule at interface '{name}' has the module below wait for its message, and here all modules "
                "run at once; use a rule that gives credit at once, or InProcess"
            )
    if not net.graph.is_chain:
        raise ConfigError(
            "the network's modules are no chain: where branches join, two batches would meet; cut it elsewhere, "
            "or use InProcess"
        )
    modules: list[nn.Sequential] = []
    parts: list[nn.Module] = []
    for name, part, ends in _parts(net.model, ""):
        parts.append(part)
        cut = [end for end in (name, *ends) if end in net.interfaces]
        if cut:
            modules.append(nn.Sequential(*parts))
            parts = []
    modules.append(nn.Sequential(*parts))
    if len(modules) != len(net.graph.modules):
        reached = {n for name, _, ends in _parts(net.model, "") for n in (name, *ends)}
        inside = [name for name in net.interfaces if name not in reached]
        raise ConfigError(
            f"interface '{inside[0]}' lies inside a module that has a forward of its own: the layer-parallel engine "
            "takes an nn.Sequential (of others, if need be) apart at cuts between its parts; make each block a "
            "part of one, or use InProcess"
        )
    return modules


def has_hooks(module: nn.Module) -> bool:
    """Has a module hooks of its own beside those of interfaces?"""
    # torch tells of them nowhere else
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = [hook for kind in kinds for hook in getattr(module, kind).values()]
    return any(not isinstance(hook, Interface) for hook in hooks)


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module, tuple[str, ...]]]:
    """Yield name and part, and the names of the containers that end with it."""
    children = list(module.named_children())
    if type(module).forward is not nn.Sequential.forward or not children:
        yield name, module, ()
        return
    if has_hooks(module):
        raise ConfigError(
            f"container '{name or type(module).__name__}' has forward hooks, which would not run: its parts are run "
            "one by one; put them on the parts"
        )
    for k, (child, part) in enumerate(children):
        inner = list(_parts(part, f"{name}.{child}" if name else child))
        if k == len(children) - 1:
            last, part, ends = inner[-1]
            inner[-1] = last, part, (*ends, name)
        yield from inner

"""Splits a decoupled chain into modules that can be called alone.

Forward hooks at the cuts are enough to train code of any form in order. But a module that runs at the same
time as the others, or in another process, must be callable alone. So the network has to be an
``nn.Sequential``, perhaps a nested one, with cuts between its children.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ...core import ConfigError, Decoupled
from ...core.interface import Interface

__all__ = ["has_hooks", "sequences"]


def sequences(net: Decoupled, engine: str) -> list[nn.Sequential]:
    """Return the modules of a network in order, as Sequentials of the model's own submodules.

    Args:
        net: a decoupled network; its submodules are shared, not copied.
        engine: the name of the engine, for errors.

    Raises:
        ConfigError: if modules branch, a cut lies inside a submodule with a forward of its own, or a
            container has hooks, which would not run.
    """
    if not net.graph.is_chain:
        raise ConfigError(
            f"the network's modules are not a chain: two batches would meet in the {engine} where branches join; cut it "
            "elsewhere, or use InProcess"
        )
    modules: list[nn.Sequential] = []
    parts: list[nn.Module] = []
    for name, part, ends in _parts(net.model, ""):
        parts.append(part)
        if any(end in net.interfaces for end in (name, *ends)):
            modules.append(nn.Sequential(*parts))
            parts = []
    modules.append(nn.Sequential(*parts))
    if len(modules) != len(net.graph.modules):
        reached = {n for name, _, ends in _parts(net.model, "") for n in (name, *ends)}
        inside = [name for name in net.interfaces if name not in reached]
        raise ConfigError(
            f"interface '{inside[0]}' lies inside a module that has a forward of its own: the {engine} takes an "
            "nn.Sequential (of others, if need be) apart at cuts between its parts; make each block a part of one, or "
            "use InProcess"
        )
    return modules


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks other than those of interfaces."""
    # PyTorch has no public function for this.
    kinds = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = [hook for kind in kinds for hook in getattr(module, kind).values()]
    return any(not isinstance(hook, Interface) for hook in hooks)


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module, tuple[str, ...]]]:
    """Yield the name and module of each part, and the names of the containers that end with it."""
    # named_children() would leave out a module that is registered a second time.
    children = [(child, part) for child, part in module._modules.items() if part is not None]  # pyright: ignore[reportPrivateUsage]
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

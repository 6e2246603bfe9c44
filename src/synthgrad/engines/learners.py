"""Who learns with whom: the parameters that one module's optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence

from ..core import Decoupled, Module
from ..core.graph import OUTPUT
from ..core.site import AtInterface
from .optimizers import Named

__all__ = ["learners"]


def learners(net: Decoupled, module: Module, position: int) -> tuple[Sequence[Named], ...]:
    """Return names and parameters of a module, and those of the rules and of the input rules updated with it.

    A rule that learns from messages is updated with the module that sends them, the last of those that its
    interface feeds. A rule that learns from its own loss alone, with the module below it; so is an input
    rule, which learns from what that module makes.

    Args:
        net: the decoupled network.
        module: one of ``net.graph.modules``.
        position: its place there.
    """
    interfaces, consumers = net.interfaces, net.graph.consumers
    ends = [n for n in module.ends if n != OUTPUT]
    rules = [interfaces[n].rule for n in ends if not interfaces[n].rule.listens]
    rules += [
        interfaces[n].rule
        for n in module.inputs
        if interfaces[n].rule.listens and consumers(n)[-1] == position
    ]
    supplies = [rule for n in ends if (rule := interfaces[n].input_rule) is not None]
    own = [(n, net.model.get_parameter(n)) for n in module.parameters]
    return own, _named(rules, "rules"), _named(supplies, "inputs")


def _named(rules: Sequence[AtInterface], what: str) -> list[Named]:
    """Return names, as in the decoupled network, and parameters of rules."""
    return [
        (f"{what}.{rule.name.replace('.', '_')}.{n}", p) for rule in rules for n, p in rule.named_parameters()
    ]

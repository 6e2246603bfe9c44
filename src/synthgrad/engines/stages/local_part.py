"""The part of a network that one process trains: a module, its rules, and their optimizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ...core import Decoupled, InputRule, Rule
from ..base import forward_args
from ..optimizers import Named, OptimizerFactory, make_optimizers
from ..parts import Part, hide_attributes, split_network
from ..ties import TiedParameters
from .layout import RankLayout
from .settings import check_tied_ends

__all__ = ["LocalPart", "make_local_part"]


@dataclass(frozen=True, slots=True)
class LocalPart:
    """What this process trains.

    Attributes:
        parts: the parts of the whole network, one for each stage.
        part: the part of this stage.
        name: the name of its module.
        rule: the rule at its end; None for the last stage.
        supplies: the input rule; None if the stage waits for its input.
        optimizers: the optimizers of module and rules; an empty list if there is nothing to train.
        ties: the tied parameters that the module uses, with their optimizers.
    """

    parts: Sequence[Part]
    part: Part
    name: str
    rule: Rule | None
    supplies: InputRule | None
    optimizers: list[Optimizer]
    ties: TiedParameters


def make_local_part(
    net: Decoupled,
    layout: RankLayout,
    example: tuple[Any, ...] | Mapping[str, Any] | None,
    optimizer: OptimizerFactory,
    rule_options: Mapping[str, Any] | None,
    input_options: Mapping[str, Any] | None,
    *,
    delays: Sequence[int],
    tied_lag: int | None = None,
) -> LocalPart:
    """Split a network, and return the part that a process trains; see `Stages` for the arguments.

    ``delays`` says how many steps after its forward pass each stage learns, ``tied_lag`` how late tied parameters do.

    Raises:
        ConfigError, CutError: if it cannot be split.
    """
    parts = split_network(
        net, None if example is None else forward_args(example, {}), tied=tied_lag is not None
    )
    hide_attributes(net, [part.attributes for part in parts], layout.stage)
    module, sites = net.graph.modules[layout.stage], list(net.graph.sites.values())
    rule = None if layout.is_last else net.interfaces[sites[layout.stage].name].rule
    supplies = None if layout.is_first else net.interfaces[sites[layout.stage - 1].name].input_rule
    # Of any stage, and not of this one: copies stay equal only if their optimizers are.
    ties = TiedParameters.made(net, optimizer, tied_lag, late=any(delays))
    check_tied_ends(ties.tied, layout)
    tied = {t.name for t in ties.tied}
    optimizers = make_optimizers(
        optimizer,
        module.name,
        ([(n, net.model.get_parameter(n)) for n in module.parameters if n not in tied], None),
        (_named("rule", rule), rule_options),
        (_named("input rule", supplies), input_options),
        late=delays[layout.stage] > 0,
    )
    ties = ties if layout.is_first or layout.is_last else TiedParameters([], [])
    return LocalPart(parts, parts[layout.stage], module.name, rule, supplies, optimizers, ties)


def _named(what: str, rule: nn.Module | None) -> list[Named]:
    return [] if rule is None else [(f"{what}.{n}", p) for n, p in rule.named_parameters()]

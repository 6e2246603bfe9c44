"""Finds the groups of layers in networks, and refuses networks that the engine cannot train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...core import ConfigError, Decoupled, Instruments, Monitor, Rule, ShapeError, Timeline
from ...core.given import check_whole
from ...core.port import refuse_network_reader, refuse_second_messages
from ..base import Criterion
from ..checks import check_criterion, check_unlockable, refuse_output_error
from ..optimizers import OptimizerFactory
from ..parts import Part, check_parts
from ..parts.sequences import sequences
from .comparison import check_alike, check_hooks, check_stackable

__all__ = ["LayerGroups", "check_run_dimension", "check_settings", "find_layer_groups"]


@dataclass(frozen=True)
class LayerGroups:
    """The modules and rules of some networks of one shape, layer by layer and run by run within a layer.

    Attributes:
        first, last: the first and the last module of each run.
        inner: the equal blocks between them.
        rules: the rules of all interfaces.
        names: the names of the modules of one network, which are those of the interfaces at which they end.
        shape: the shape of the messages, without the batch dimension.
    """

    first: list[nn.Sequential]
    inner: list[nn.Sequential]
    last: list[nn.Sequential]
    rules: list[Rule]
    names: list[str]
    shape: tuple[int, ...]


def find_layer_groups(nets: Sequence[Decoupled]) -> LayerGroups:
    """Find the groups of layers in networks that are to be trained as one batch.

    Raises:
        ConfigError: if the networks cannot be trained so; names the blocks.
    """
    chains = [_split_chain(net) for net in nets]
    names = [module.name for module in nets[0].graph.modules]
    depth = len(names)
    if depth < 3:
        raise ConfigError(
            f"the network has {depth} modules, expected at least 3: blocks of equal shape between a first and a last "
            "module; cut it in more places, or use InProcess"
        )
    if len(nets) > 1:
        _check_runs(nets, chains)
    inner = [chain[k] for k in range(1, depth - 1) for chain in chains]
    own = [chain for chain in chains[0][1:-1]]
    check_stackable(own[0], names[1])
    check_alike(own, names[1:-1], "block")
    if len(inner) > 1:
        for block, name in zip(inner, [n for n in names[1:-1] for _ in nets], strict=True):
            check_hooks(block, name)
    _check_sites(nets[0])
    interfaces = list(nets[0].interfaces)
    check_alike([nets[0].interfaces[name].rule for name in interfaces], interfaces, "rule at interface")
    return LayerGroups(
        first=[chain[0] for chain in chains],
        inner=inner,
        last=[chain[-1] for chain in chains],
        rules=[net.interfaces[name].rule for name in interfaces for net in nets],
        names=names,
        shape=tuple(nets[0].graph.sites[interfaces[0]].shape[1:]),
    )


def _split_chain(net: Decoupled) -> list[nn.Sequential]:
    """Return the modules of a network in order, as Sequentials of the model's own submodules.

    Args:
        net: a decoupled network; its submodules are shared, not copied.

    Raises:
        ConfigError: if modules branch, a cut lies inside a submodule with a forward of its own, there are
            synthetic inputs or waiting rules, or a container has hooks, which would not run.
        CutError: if the modules, run one after the other on the example, do not give the network's output.
    """
    check_unlockable(net)
    for name, interface in net.interfaces.items():
        if interface.input_rule is not None:
            raise ConfigError(
                f"interface '{name}' has synthetic inputs, which the layer-parallel engine does not need: its modules do "
                "not wait for each other; decouple without inputs, or use InProcess"
            )
        refuse_second_messages(interface.rule, name)
        refuse_network_reader(interface.rule, name)
        refuse_output_error(interface.rule, name, "all modules run at once here, each on another batch")
        if interface.rule.waits:
            raise ConfigError(
                f"the rule at interface '{name}' has the module below wait for its message, and here all modules "
                "run at once; use a rule that gives credit at once, or InProcess"
            )
    for name, layout in net.graph.layouts.items():
        if layout.batch_dim:
            raise ConfigError(
                f"the message at interface '{name}' has its batch in dimension {layout.batch_dim}: the layer-parallel "
                "engine needs the batch first; let the modules take (B, T, F), or use InProcess"
            )
    modules = sequences(net, "layer-parallel engine")
    check_parts(
        net, lambda twin: [Part(m, None) for m in sequences(twin, "layer-parallel engine")], net.example
    )
    return modules


def _check_runs(nets: Sequence[Decoupled], chains: Sequence[Sequence[nn.Module]]) -> None:
    """Refuse networks that differ in shape, or that share parameters."""
    owner: dict[int, int] = {}
    for run, net in enumerate(nets):
        for name, p in net.named_parameters():
            if owner.setdefault(id(p), run) != run:
                raise ConfigError(
                    f"parameter '{name}' is of network {owner[id(p)]} and of network {run}: networks that train side by "
                    "side must be apart; give each a copy of its own, as copy.deepcopy makes"
                )
        for k in (0, -1):
            check_hooks(chains[run][k], f"{net.graph.modules[k].name} of network {run}")
    for run, (net, chain) in enumerate(zip(nets[1:], chains[1:], strict=True), 1):
        if len(chain) != len(chains[0]):
            raise ConfigError(
                f"network {run} has {len(chain)} modules and network 0 {len(chains[0])}: networks that train side by "
                "side must have one shape"
            )
        of_reduction = (nets[0].units.reduction, net.units.reduction)
        if of_reduction[0] != of_reduction[1]:
            raise ConfigError(
                f"network {run} was decoupled with reduction={of_reduction[1]!r} and network 0 with "
                f"{of_reduction[0]!r}; give one for all"
            )
        for name, a, b in zip((m.name for m in net.graph.modules), chains[0], chain, strict=True):
            check_alike([a, b], [f"{name} of network 0", f"{name} of network {run}"], "block")
        for name, a in nets[0].interfaces.items():
            b = net.interfaces.get(name)
            rules = [a.rule, a.rule if b is None else b.rule]
            check_alike(rules, [f"{name} of network 0", f"{name} of network {run}"], "rule at interface")


def _check_sites(net: Decoupled) -> None:
    """Refuse messages of different shapes, and blocks that change their input in place."""
    sites = net.graph.sites
    shapes = {name: tuple(site.shape[1:]) for name, site in sites.items()}
    first = next(iter(shapes))
    for name, shape in shapes.items():
        if shape != shapes[first]:
            raise ConfigError(
                f"what crosses interface '{first}' has shape (B, {', '.join(map(str, shapes[first]))}) and what crosses "
                f"'{name}' (B, {', '.join(map(str, shape))}): blocks that run as one batch must have one shape; cut "
                "elsewhere, or use InProcess"
            )
        if name in net.graph.copies:
            above = net.graph.modules[net.graph.consumers(name)[0]].name
            raise ConfigError(
                f"block '{above}' changes its input in place, which the others of the batch still need; use modules "
                "that do not (inplace=False), or use InProcess"
            )


def check_settings(
    nets: Sequence[Decoupled],
    criterion: Criterion,
    factories: Sequence[OptimizerFactory],
    observe: int,
    monitor: Monitor | None,
    timeline: Timeline | None,
) -> None:
    """Refuse settings that are out of range."""
    check_criterion(criterion)
    if not nets:
        raise ConfigError("got no network; give one, or several of one shape")
    if len(factories) != len(nets):
        raise ConfigError(
            f"got {len(factories)} optimizer factories for {len(nets)} networks; give one, or one for each"
        )
    check_whole("observe", observe, 0, "number of steps")
    Instruments(monitor=monitor, timeline=timeline)  # which looks at what they are
    if monitor is not None and len(nets) > 1:
        raise ConfigError("a monitor names interfaces, of which several networks have the same; give none")
    if timeline is not None and len(nets) > 1:
        raise ConfigError("a timeline names modules, of which several networks have the same; give none")


def check_run_dimension(num_runs: int, **given: Any) -> None:
    """Refuse a value that is not a tensor with one part for each network.

    Raises:
        ShapeError: naming the value.
    """
    for name, value in given.items():
        fits = isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == num_runs
        if not fits and not (value is None and name == "context"):
            form = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ShapeError(
                f"got a {name} of {form} for {num_runs} networks, expected a tensor ({num_runs}, B, ...)"
            )

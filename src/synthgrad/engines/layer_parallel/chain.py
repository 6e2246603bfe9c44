"""Takes a network apart whose modules are to run all at once."""

from __future__ import annotations

from torch import nn

from ...core import ConfigError, Decoupled
from ..apart import Part, check_parts
from ..checks import check_unlockable, refuse_output_error
from ..sequences import sequences

__all__ = ["take_apart"]


def take_apart(net: Decoupled) -> list[nn.Sequential]:
    """Return the network's modules in the order of the forward pass, as sequences of the model's own parts.

    Args:
        net: a decoupled network; its parts are shared, not copied.

    Raises:
        ConfigError: if modules branch, a cut lies inside a part, synthetic inputs or waiting rules are asked
            for, or a container has hooks, which would not run.
        CutError: if the modules, run one after the other on the example, do not give the network's output.
    """
    check_unlockable(net)
    for name, interface in net.interfaces.items():
        if interface.input_rule is not None:
            raise ConfigError(
                f"interface '{name}' has synthetic inputs: in the layer-parallel engine no module waits for "
                "another as it is; decouple without inputs, or use InProcess"
            )
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
                "engine takes batches first; let the modules take (B, T, F), or use InProcess"
            )
    modules = sequences(net, "layer-parallel engine")
    check_parts(
        net, lambda twin: [Part(m, None) for m in sequences(twin, "layer-parallel engine")], net.example
    )
    return modules

"""Makes the links of a stage: those of a run that stops together, or of one that goes on when a stage dies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core import Decoupled
from .connect import StageLinks, connect
from .coordinator import Coordinator
from .elastic import ElasticLinks, connect_elastic
from .handshake import describe_state
from .layout import RankLayout
from .local_part import LocalPart
from .settings import StageSettings
from .transport import Transport
from .transport.elastic import ElasticTransport
from .wire import ParcelSlot, output_slot, slot_for

__all__ = ["make_links"]


def make_links(
    access: Transport | ElasticTransport,
    coordinator: Coordinator | None,
    net: Decoupled,
    own: LocalPart,
    layout: RankLayout,
    settings: StageSettings,
    same: Mapping[str, Any],
    *,
    monitored: bool,
) -> StageLinks | ElasticLinks:
    """Return the links of a stage to its neighbours.

    Args:
        access: how they are reached.
        coordinator: the coordinator of all ranks; None where stages go on without each other.
        net: the network.
        own: what this process trains.
        layout: the place of this process.
        settings: how stages communicate.
        same: what else must be equal everywhere, as JSON values.
        monitored: whether the credits at the end of this stage are measured.
    """
    sites = list(net.graph.sites.values())
    device = sites[min(layout.stage, len(sites) - 1)].device
    inputs = None if own.part.inputs is None else own.part.inputs.tensor_specs
    same = {"the network": describe_state(net), **same, "tied_lag": settings.tied_lag}
    travels = [slot_for(site) for site in sites]
    along = [ParcelSlot((None,) * max(f.ndim - 1, 0), f.dtype, shape_only=not f.needed) for f in inputs or ()]
    output = output_slot(net)
    if isinstance(access, ElasticTransport):
        rules = [interface.rule for interface in net.interfaces.values()]
        synthetic = own.supplies is not None
        return connect_elastic(
            access, layout, travels, rules, settings, same, device, along, output=output, synthetic=synthetic
        )
    assert coordinator is not None
    return connect(
        coordinator,
        layout,
        travels,
        own.rule,
        settings,
        same,
        device,
        along,
        monitored=monitored,
        output=output,
        around=settings.tied_lag is not None,
    )

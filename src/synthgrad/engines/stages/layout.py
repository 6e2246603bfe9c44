"""Which process is which stage, and over which groups neighbours talk."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from ...core import ConfigError

__all__ = ["Groups", "Layout", "make_groups"]

#: Threads wait in receives as long as a run lasts: that a peer is gone is found out in other ways.
_FOREVER = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Layout:
    """The place of a process among ``num_stages × num_replicas``.

    Attributes:
        stage: part of the network, from 0.
        num_stages: parts.
        replica: which copy of that part, from 0.
        num_replicas: copies of each part.
    """

    stage: int
    num_stages: int
    replica: int = 0
    num_replicas: int = 1

    @classmethod
    def here(cls, num_stages: int, num_replicas: int = 1) -> Layout:
        """Return the place of this process: ranks run over the replicas of stage 0 first, then of stage 1.

        Raises:
            ConfigError: if there is no process group, or another number of processes.
        """
        if not dist.is_initialized():
            raise ConfigError(
                "no process group: start the program with torchrun, and call "
                "synthgrad.engines.stages.join() first"
            )
        world, rank = dist.get_world_size(), dist.get_rank()
        if num_replicas < 1 or world != num_stages * num_replicas:
            raise ConfigError(
                f"{world} processes for {num_stages} stages × {num_replicas} replicas: expected "
                f"{num_stages * max(num_replicas, 1)}; start as many (torchrun --nproc-per-node), or cut the network "
                "elsewhere: every cut ends a stage"
            )
        return cls(rank // num_replicas, num_stages, rank % num_replicas, num_replicas)

    def rank(self, stage: int) -> int:
        """Return the rank of another stage of the same replica."""
        return stage * self.num_replicas + self.replica

    @property
    def is_first(self) -> bool:
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        return self.stage == self.num_stages - 1


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of one process. A link has two, one for each direction: neither can hold the other up.

    Attributes:
        up_below, down_below: to the stage below; None for the first.
        up_above, down_above: to the stage above; None for the last.
        replicas: of the same stage; None if there is one only.
    """

    up_below: dist.ProcessGroup | None = None
    down_below: dist.ProcessGroup | None = None
    up_above: dist.ProcessGroup | None = None
    down_above: dist.ProcessGroup | None = None
    replicas: dist.ProcessGroup | None = None

    @property
    def links(self) -> list[dist.ProcessGroup]:
        """The groups of the links, to be destroyed when they have been used."""
        found = (self.up_below, self.down_below, self.up_above, self.down_above)
        return [group for group in found if group is not None]


def make_groups(layout: Layout, device_type: str) -> Groups:
    """Make the groups of all links. Blocks until every process has called it."""
    mine: dict[str, dist.ProcessGroup] = {}
    for stage in range(layout.num_stages - 1):
        for replica in range(layout.num_replicas):
            pair = [(stage + k) * layout.num_replicas + replica for k in (0, 1)]
            for way in ("up", "down"):
                group = dist.new_group(pair, timeout=_FOREVER)  # pyright: ignore[reportUnknownMemberType]
                if isinstance(group, dist.ProcessGroup) and replica == layout.replica:
                    mine[f"{way}_{'above' if layout.stage == stage else 'below'}"] = group
    if layout.num_replicas > 1:
        shape = (layout.num_stages, layout.num_replicas)
        mesh = init_device_mesh(device_type, shape, mesh_dim_names=("stage", "replica"))
        mine["replicas"] = mesh.get_group("replica")
    return Groups(**mine)

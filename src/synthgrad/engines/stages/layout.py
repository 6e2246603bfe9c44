"""Which rank is which stage."""

from __future__ import annotations

from dataclasses import dataclass

from ...core import ConfigError

__all__ = ["RankLayout"]


@dataclass(frozen=True, slots=True)
class RankLayout:
    """The place of a rank among ``num_stages × num_replicas``.

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
    def of(cls, rank: int, world_size: int, num_stages: int, num_replicas: int = 1) -> RankLayout:
        """Return the place of a rank: ranks run over the replicas of stage 0 first, then of stage 1.

        Raises:
            ConfigError: if there is another number of ranks.
        """
        if num_replicas < 1 or world_size != num_stages * num_replicas:
            raise ConfigError(
                f"{world_size} processes for {num_stages} stages × {num_replicas} replicas: expected "
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

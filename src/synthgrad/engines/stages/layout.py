"""The layout of ranks: which rank is which stage."""

from __future__ import annotations

from dataclasses import dataclass

from ...core import ConfigError

__all__ = ["RankLayout"]


@dataclass(frozen=True, slots=True)
class RankLayout:
    """The place of a rank among ``num_stages × num_replicas``.

    Attributes:
        stage: the number of the stage, from 0.
        num_stages: the number of stages.
        replica: the number of the copy of that stage, from 0.
        num_replicas: the number of copies of each stage.
    """

    stage: int
    num_stages: int
    replica: int = 0
    num_replicas: int = 1

    @classmethod
    def of(cls, rank: int, world_size: int, num_stages: int, num_replicas: int = 1) -> RankLayout:
        """Return the place of a rank: the replicas of stage 0 have the first ranks, then those of stage 1.

        Raises:
            ConfigError: if the number of ranks is not stages × replicas.
        """
        if num_replicas < 1 or world_size != num_stages * num_replicas:
            raise ConfigError(
                f"{world_size} processes for {num_stages} stages × {num_replicas} replicas: expected "
                f"{num_stages * max(num_replicas, 1)}; start as many (torchrun --nproc-per-node), or cut the network "
                "elsewhere: every cut ends a stage"
            )
        return cls(rank // num_replicas, num_stages, rank % num_replicas, num_replicas)

    def check_saved(self, stage: int, num_stages: int) -> None:
        """Refuse a state that another stage has saved.

        Raises:
            ConfigError: naming both.
        """
        if (stage, num_stages) != (self.stage, self.num_stages):
            raise ConfigError(
                f"stage {self.stage} of {self.num_stages} was given the state of stage {stage} of {num_stages}: every process "
                "must load what it has saved"
            )

    def rank(self, stage: int) -> int:
        """Return the rank of another stage of the same replica."""
        return stage * self.num_replicas + self.replica

    @property
    def is_first(self) -> bool:
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        return self.stage == self.num_stages - 1

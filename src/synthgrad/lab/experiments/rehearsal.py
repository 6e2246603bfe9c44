"""What is tried before anything is written: can each run begin, and what will a step of it cost?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ...core import ConfigError, DataError, Decoupled, DivergedError, SynthgradError
from ...engines import LayerParallel
from ..tasks import draw_batches
from .config import RuleSettings, RunConfig
from .loop import Loop

__all__ = ["Work", "rehearse", "with_estimates"]


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations of matrix products and convolutions, of one batch.

    Attributes:
        forward: of the network's forward pass alone.
        step: of a whole step in which every module updates.
    """

    forward: int
    step: int

    def expected(self, update_prob: float) -> float:
        """Return what a step costs on average: a module that draws no update only runs forward.

        About: a rule that has to learn although its module drew no update runs forward once more.
        """
        return self.forward + update_prob * (self.step - self.forward)


def with_estimates(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Rehearse every different run once; return the runs with the estimated ratio of their step's cost.

    The ratio is that of the arithmetic to backpropagation's of the same network: rough, because
    elementwise work, optimizers and Python are left out.

    Raises:
        SynthgradError: if a run cannot begin.
    """
    works: dict[RunConfig, Work | None] = {}

    def work(config: RunConfig) -> Work | None:
        # A step of sparse updates is drawn: the whole step is counted, and its parts weighed afterwards.
        key = replace(config, seed=0, cell=replace(config.cell, update_prob=1.0))
        if key not in works:
            works[key] = rehearse(key)
        return works[key]

    estimated: list[RunConfig] = []
    for config in configs:
        own = work(config)
        cell = replace(config.cell, update_prob=1.0, engine="plain", at=())
        reference = replace(config, method="backprop", cell=cell, rule=RuleSettings())
        whole = work(reference)
        ratio = None
        if own is not None and whole is not None and whole.step:
            ratio = own.expected(config.cell.update_prob) / whole.step
        estimated.append(replace(config, estimated_ratio=ratio))
    return estimated


def rehearse(config: RunConfig) -> Work | None:
    """Do what a run does before its first step, one batch without learning and one with it.

    Returns:
        The work of that batch; None if its loss is not finite, which the run will say in its record.

    Raises:
        SynthgradError: if the run cannot begin.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        # Not compiled: its operations are the same, and a compiler that fails is a run's own affair.
        loop = Loop(replace(config, compiled=False), None)
        try:
            loop.prepare()
            if config.compiled and isinstance(loop.trainer, LayerParallel):
                loop.trainer.check_compilable()
            x, y, ids = _batch(loop)
            with torch.no_grad(), FlopCounterMode(display=False) as forward:
                scores = loop.net(x)
            _check_scores(config, loop, scores, len(ids))
            if not loop.net.training:
                loop.net.train()
            if isinstance(loop.trainer, LayerParallel) and isinstance(loop.net, Decoupled):
                for _ in loop.net.graph.modules:  # until a batch has reached every layer
                    loop.trainer.step(x, y, ids=ids)
            with FlopCounterMode(display=False) as step:
                loop.trainer.step(x, y, ids=ids)
        except (ConfigError, DataError):
            raise
        except DivergedError:
            return None
        except Exception as error:  # whatever the user's network raises, a cut that cannot be made
            kind = "" if isinstance(error, SynthgradError) else f"{type(error).__name__}: "
            reason = kind + (str(error).splitlines() or [""])[0]
            raise _unfit(config, loop, reason) from error
        return Work(forward.get_total_flops(), step.get_total_flops())


def _batch(loop: Loop) -> tuple[Tensor, Tensor, Tensor]:
    train, config = loop.data.train, loop.config
    ids = next(draw_batches(len(train), config.schedule.batch_size, config.seed, train.y.device))
    return train.x[ids], train.y[ids], ids


def _check_scores(config: RunConfig, loop: Loop, scores: object, num_examples: int) -> None:
    expected = (num_examples, loop.data.classes)
    if not isinstance(scores, Tensor) or scores.shape != expected:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise _unfit(config, loop, f"it returned {got}, expected {expected}")
    if not any(p.requires_grad for p in loop.net.parameters()):
        raise _unfit(config, loop, "it has no parameter that learns")


def _unfit(config: RunConfig, loop: Loop, reason: str) -> ConfigError:
    return ConfigError(
        f"network '{config.cell.arch}' with {config.method} cannot be trained on '{config.cell.data}', batch of "
        f"{config.schedule.batch_size}: {reason}; it must have parameters that learn, take inputs "
        f"{tuple(loop.data.train.x.shape[1:])} and return scores for {loop.data.classes} classes"
    )

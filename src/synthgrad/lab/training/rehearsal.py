"""Checks before a sweep writes anything: whether every run can begin, and how much its steps will cost."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ...core import ConfigError, DataError, Decoupled, DivergedError, SynthgradError
from ...engines import LayerParallel
from ..tasks import draw_batches
from .payloads import FeedForward
from .run import Run
from .settings import RuleSettings
from .tasks import task_of
from .tasks.feed_forward import FeedForwardTask, data_for

__all__ = ["StepFlops", "rehearse", "rehearse_all", "with_estimates"]


@dataclass(frozen=True, slots=True)
class StepFlops:
    """Numbers of floating-point operations of one batch, in matrix products and convolutions.

    Attributes:
        forward: operations of the network's forward pass.
        step: operations of a whole step in which every module updates.
    """

    forward: int
    step: int

    def expected(self, update_prob: float) -> float:
        """Return the mean number of operations per step, if a module without an update only runs forward.

        This is an estimate: a rule that learns although its module does not update runs one more forward pass.
        """
        return self.forward + update_prob * (self.step - self.forward)


def rehearse_all(runs: Sequence[Run]) -> list[Run]:
    """Check that every run can begin; return the runs, feed-forward ones with their estimated cost.

    Each warning about the data is shown once.

    Raises:
        SynthgradError: if a run cannot begin.
    """
    feed_forward = [run for run in runs if isinstance(run.payload, FeedForward)]
    others = [run for run in runs if not isinstance(run.payload, FeedForward)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if feed_forward and isinstance(payload := feed_forward[0].payload, FeedForward):
            data_for(payload.data, feed_forward[0].data_dir, payload.hold_out, feed_forward[0].device)
        _set_up(others)
    for text in dict.fromkeys(str(w.message) for w in caught):
        warnings.warn(text, stacklevel=2)
    return [*with_estimates(feed_forward), *others]


def _set_up(runs: Sequence[Run]) -> None:
    """Set up the runs without training; of runs that differ only in their seed, one is enough."""
    for run in dict.fromkeys(replace(run, seed=0) for run in runs):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            task_of(run).set_up()


def with_estimates(runs: Sequence[Run]) -> list[Run]:
    """Rehearse every different run once; return the runs with the estimated cost of a step.

    The cost is the number of operations as a ratio to backpropagation of the same network. It is rough, because
    element-wise operations, optimizers and Python are not counted.

    Args:
        runs: runs of feed-forward networks.

    Raises:
        SynthgradError: if a run cannot begin.
    """
    works: dict[Run, StepFlops | None] = {}

    def work(run: Run, payload: FeedForward) -> StepFlops | None:
        # Sparse updates are random, so a full step is counted here, and `StepFlops.expected` weights its parts.
        key = replace(run, seed=0, payload=replace(payload, update_prob=1.0))
        if key not in works:
            works[key] = rehearse(key)
        return works[key]

    estimated: list[Run] = []
    for run in runs:
        payload = run.payload
        assert isinstance(payload, FeedForward)
        own = work(run, payload)
        plain = replace(payload, update_prob=1.0, engine="plain", at=())
        in_time = replace(run.schedule, error_feedback=False, versions=None)
        reference = replace(run, method="backprop", payload=plain, schedule=in_time, rule=RuleSettings())
        whole = work(reference, plain)
        ratio = None
        if own is not None and whole is not None and whole.step:
            ratio = own.expected(payload.update_prob) / whole.step
        estimated.append(replace(run, estimated_ratio=ratio))
    return estimated


def rehearse(run: Run) -> StepFlops | None:
    """Set up a run, and process one batch without learning and one with it.

    Returns:
        The operations of a batch; None if its loss is not finite, which the record of the run will show.

    Raises:
        SynthgradError: if the run cannot begin.
    """
    payload = run.payload
    assert isinstance(payload, FeedForward)
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        # Not compiled: the operations are the same, and a failing compiler must fail only its own run.
        task = FeedForwardTask(replace(run, payload=replace(payload, compiled=False)))
        try:
            task.set_up()
            if payload.compiled and isinstance(task.trainer, LayerParallel):
                task.trainer.check_compilable()
            x, y, ids = _batch(task)
            with torch.no_grad(), FlopCounterMode(display=False) as forward:
                scores = task.net(x)
            _check_scores(task, scores, len(ids))
            if not task.net.training:
                task.net.train()
            if isinstance(task.trainer, LayerParallel) and isinstance(task.net, Decoupled):
                for _ in task.net.graph.modules:  # fills the pipeline, so that every layer has a batch
                    task.trainer.step(x, y, ids=ids)
            with FlopCounterMode(display=False) as step:
                task.trainer.step(x, y, ids=ids)
        except (ConfigError, DataError):
            raise
        except DivergedError:
            return None
        except Exception as error:  # an error in the user's network, or a cut that cannot be made
            kind = "" if isinstance(error, SynthgradError) else f"{type(error).__name__}: "
            reason = kind + (str(error).splitlines() or [""])[0]
            if "more than 1 value per channel" in reason:
                raise ConfigError(
                    f"--batch-size {run.schedule.batch_size}: the network or a rule has BatchNorm, which needs at least "
                    "2 examples in a batch; give --batch-size 2 or more"
                ) from error
            raise _unfit(task, reason) from error
        return StepFlops(forward.get_total_flops(), step.get_total_flops())


def _batch(task: FeedForwardTask) -> tuple[Tensor, Tensor, Tensor]:
    train, run = task.data.train, task.run
    ids = next(draw_batches(len(train), run.schedule.batch_size, run.seed, train.y.device))
    return train.x[ids], train.y[ids], ids


def _check_scores(task: FeedForwardTask, scores: object, num_examples: int) -> None:
    expected = (num_examples, task.data.classes)
    if not isinstance(scores, Tensor) or scores.shape != expected:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise _unfit(task, f"it returned {got}, expected {expected}")
    if not any(p.requires_grad for p in task.net.parameters()):
        raise _unfit(task, "no parameter requires a gradient")


def _unfit(task: FeedForwardTask, reason: str) -> ConfigError:
    run, payload = task.run, task.payload
    return ConfigError(
        f"network '{payload.arch}' cannot be trained with {run.method} on '{payload.data}', batch size "
        f"{run.schedule.batch_size}: {reason}; it must have parameters that require a gradient, take inputs "
        f"{tuple(task.data.train.x.shape[1:])} and return scores for {task.data.classes} classes"
    )

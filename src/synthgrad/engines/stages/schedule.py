"""Stages in the form of ``torch.distributed.pipelining``.

A program that uses its schedules has to change one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...core import ConfigError, Guard, Instruments, Rule, Site
from ...core.copies import copied
from ...core.given import instance_of
from ...core.port import refuse_second_messages
from ...core.units import Reduction, Units
from ..checks import refuse_output_error
from ..codecs import Codec
from ..optimizers import clear_autocast_cache
from ..parts import Part
from .connect import StageLinks, connect
from .coordinator import Coordinator
from .layout import RankLayout
from .settings import StageSettings
from .stage import Stage
from .transport import Transport, distributed
from .wire import ParcelSlot

__all__ = ["PipelinePart", "ScheduleDecoupled"]


class PipelinePart(Protocol):
    """What a schedule needs of a ``PipelineStage`` of ``torch.distributed.pipelining``.

    This is a protocol, because loading that module takes as long as loading PyTorch itself.

    Attributes:
        submod: the module of this process.
        stage_index: its position, from 0.
        num_stages: the number of stages.
        device: the device of the module.
    """

    submod: nn.Module
    stage_index: int
    num_stages: int
    device: torch.device


class ScheduleDecoupled:
    """A schedule that waits for no gradient: replaces ``Schedule1F1B(stage, n, loss_fn)``.

    ::

        schedule = ScheduleDecoupled(stage, n, loss_fn, rule=SyntheticGradient(context=10), example=x)
        optimizer = torch.optim.Adam(schedule.parameters())
        schedule.step(x, target=y)            # first stage
        schedule.step(target=y)               # all others
        optimizer.step(); optimizer.zero_grad()

    ``step`` leaves gradients, averaged over microbatches, as other schedules do. Two things are different:
    every rank passes ``target``, which the rule may need, and the optimizer also gets the parameters of the
    rule. At the end call `close`.

    Args:
        stage: a ``PipelineStage``, or an object with its attributes; one for each process.
        n_microbatches: the number of microbatches of a batch, along its first dimension.
        loss_fn: takes output and target, returns the mean loss; used by the last stage.
        rule: the rule that gives the stage its credit.
        example: a microbatch of inputs of the whole network, to find the shapes; given by the first stage
            only.
        window: the number of microbatches that an answer may be late; None to adapt it to the link.
        deterministic: whether lags are counted in microbatches instead of arrival times; see `Stages`.
        observe_prob: the share of the true messages that are sent back.
        observe_rows: the share of a microbatch's rows for which they are sent; see `Stages`.
        wire_dtype: the dtype in which tensors are sent; None for the network's own. Short for
            ``codecs.cast``.
        codec: the codec of activations, and of messages unless these have their own; see `codecs`.
        message_codec: the codec of messages; None for that of activations.
        reduction: how ``loss_fn`` reduces; see `decouple`.
        guard: whether to stop with `DivergedError` at a message or loss that is not finite.
        timeout_s: how long a stage waits for another, in seconds.
        seed: the seed of the draws for ``observe_prob`` and ``observe_rows``.
        transport: how the processes reach each other; None for the process group of ``torch.distributed``.

    Raises:
        ConfigError: if a setting is out of range, or the number of processes is not the number of stages.
        StageError: if a process does not come, or fails.
    """

    def __init__(
        self,
        stage: PipelinePart,
        n_microbatches: int,
        loss_fn: Callable[[Any, Any], Tensor],
        *,
        rule: Rule,
        example: Tensor | None = None,
        window: int | None = None,
        deterministic: bool = False,
        observe_prob: float = 1.0,
        observe_rows: float = 1.0,
        wire_dtype: torch.dtype | None = None,
        codec: Codec | None = None,
        message_codec: Codec | None = None,
        reduction: Reduction = "mean",
        guard: bool | Guard = True,
        timeout_s: float = 300.0,
        seed: int = 0,
        transport: Transport | None = None,
    ) -> None:
        settings = StageSettings(
            window=window,
            deterministic=deterministic,
            observe_prob=observe_prob,
            observe_rows=observe_rows,
            wire_dtype=wire_dtype,
            timeout_s=timeout_s,
            seed=seed,
            codec=codec,
            message_codec=message_codec,
        )
        settings.check()
        if n_microbatches < 1:
            raise ConfigError(f"n_microbatches={n_microbatches}: expected at least 1")
        instance_of(Rule, rule, "rule", "synthgrad.SyntheticGradient(...)")
        refuse_output_error(
            rule, f"after stage {stage.stage_index}", "this schedule waits for no stage above"
        )
        refuse_second_messages(rule, f"after stage {stage.stage_index}")
        if rule.waits:
            raise ConfigError(
                f"rule {type(rule).__name__} makes the stage wait for its message, as Schedule1F1B does; use that, "
                "or engines.Stages with a window"
            )
        transport = distributed() if transport is None else transport
        self._clock = transport.clock
        layout = RankLayout.of(transport.rank, transport.world_size, stage.num_stages)
        if stage.stage_index != layout.stage:
            raise ConfigError(
                f"stage {stage.stage_index} in the process of rank {layout.stage}: expected one stage for each process, "
                "in the order of the ranks"
            )
        self.module: nn.Module = stage.submod
        self.n_microbatches = n_microbatches
        coordinator = Coordinator.of(transport, layout, timeout_s)
        try:
            sites, copies = _sites(coordinator, layout, self.module, example, stage.device, timeout_s)
        except Exception as error:
            # The other stages are waiting for the shape that this one was to publish.
            coordinator.alarm.ring(error)
            coordinator.peers.leave()
            raise
        own = None if layout.is_last else rule.bind(sites[layout.stage])
        self.rule = own
        self._links: StageLinks = connect(
            coordinator,
            layout,
            [ParcelSlot(tuple(site.shape[1:]), site.dtype) for site in sites],
            own,
            settings,
            {"n_microbatches": n_microbatches},
            stage.device,
        )
        self._instruments = Instruments(Guard.of(guard))
        self._stage = Stage(
            Part(self.module, None),
            Units(reduction),
            loss_fn if layout.is_last else None,
            own,
            below=self._links.below,
            above=self._links.above,
            window=self._links.window,
            deterministic=deterministic,
            instruments=self._instruments,
            name=f"stage {layout.stage}",
            copies=copies,
            observe_rows=observe_rows,
            seed=seed,
        )
        self._step = 0

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of this stage's module and of its rule, for the optimizer."""
        yield from self.module.parameters()
        if self.rule is not None:
            yield from self.rule.parameters()

    def step(
        self,
        *args: Tensor,
        target: Tensor | None = None,
        losses: list[Tensor] | None = None,
        return_outputs: bool = True,
    ) -> Tensor | None:
        """Run a batch through this stage, microbatch by microbatch; gradients are left in ``.grad``.

        Args:
            args: the input, ``(B, ...)``, in the first stage; none elsewhere.
            target: ``(B, ...)``, in every stage.
            losses: a list that the losses of the microbatches are appended to in the last stage.
            return_outputs: whether to return the network's output, detached, in the last stage.

        Raises:
            ConfigError: if an input or the target is missing, or there are fewer examples than microbatches.
            StageError: if another process has stopped, with the cause.
        """
        n, layout = self.n_microbatches, self._links.layout
        if layout.is_first != (len(args) == 1):
            raise ConfigError(
                f"stage {layout.stage} got {len(args)} inputs: the first stage is given one tensor, others none"
            )
        if target is None:
            raise ConfigError(f"stage {layout.stage} got no target: pass target=… on every rank")
        targets = target.chunk(n)
        inputs = args[0].chunk(n) if args else (None,) * n
        if len(targets) != n or len(inputs) != n:
            raise ConfigError(
                f"{len(target)} examples cannot be cut into {n} microbatches; give more, or fewer of these"
            )
        outputs: list[Tensor] = []
        start, waited = self._clock.now(), self._links.waited_s
        with self._links.guarded():
            clear_autocast_cache()
            for x, y in zip(inputs, targets, strict=True):
                ran = self._stage.run(self._step, None if x is None else ((x,), {}), y)
                self._step += 1
                if ran.loss is not None and losses is not None:
                    losses.append(ran.loss)
                if ran.output is not None:
                    outputs.append(ran.output)
        self._links.window.record_step((self._clock.now() - start - (self._links.waited_s - waited)) / n)
        if n > 1:
            for p in self.parameters():
                if p.grad is not None:
                    p.grad.div_(n)
        return torch.cat(outputs) if outputs and return_outputs else None

    def close(self) -> None:
        """Disconnect from the neighbours in order. Blocks; all must call it."""
        self._instruments.flush()
        if self._links.is_closed:
            return
        with self._links.guarded():
            self._links.close(self._step)


def _sites(
    coordinator: Coordinator,
    layout: RankLayout,
    module: nn.Module,
    example: Tensor | None,
    device: torch.device,
    timeout_s: float,
) -> tuple[list[Site], bool]:
    """Run the example through the stages. Each stage publishes only the shape of its output to the next one.

    Returns:
        The site of each cut, and whether this stage changes its input in place.
    """

    def crosses(stage: int) -> tuple[tuple[int, ...], torch.dtype]:
        shape, dtype = coordinator.wait_for(f"crosses/{stage}", layout.rank(stage), timeout_s)
        return tuple(shape), getattr(torch, dtype)

    if layout.is_first:
        if example is None:
            raise ConfigError(
                "the first stage needs an example: one microbatch of inputs, as in example=x[:8]"
            )
        x = example.to(device)
    else:
        shape, dtype = crosses(layout.stage - 1)
        x = torch.zeros(shape, dtype=dtype, device=device)
    twin = copied(module)  # a copy, since BatchNorm's statistics must not learn from zeros
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        before = x._version
        out = twin(x)
        copies = x._version != before
    if not layout.is_last:
        coordinator.publish(
            f"crosses/{layout.stage}", [list(out.shape), str(out.dtype).removeprefix("torch.")]
        )
    sites: list[Site] = []
    for k in range(layout.num_stages - 1):
        shape, dtype = crosses(k)
        sites.append(Site(f"stage{k}", shape, dtype, device, module))
    return sites, copies

"""Stages: parts of a network in processes that never wait for each other's backward pass.

Every process runs the same program and builds the same decoupled network; each trains the part between two
cuts. ``stage.py`` is a step, ``links.py`` says what is sent, and ``window.py`` how far a stage may run ahead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...core import ConfigError, Decoupled, Guard, Instruments, Monitor, StageError, Timeline
from ...core.modes import evaluating
from ..base import (
    Criterion,
    ForwardArgs,
    StepRecord,
    explain_load_errors,
    forward_args,
    restore_buffers_after_skips,
)
from ..checks import check_criterion, warn_of_evaluation
from ..codecs import Codec, check_codecs
from ..optimizers import (
    OptimizerFactory,
    clear_autocast_cache,
    has_gradient,
    zero_grad,
)
from ..penalty import Penalties, Penalty
from ..updates import Updates
from ..watch import GradientWatch, check_loss_once
from .assemble import optimizers_by_name
from .clip import Clip
from .coordinator import Coordinator
from .copies import loaded_state, saved_state, take_average
from .elastic import ElasticLinks
from .figures import StageFigures
from .gather import Gather
from .late import LateInput
from .layout import RankLayout
from .local_part import make_local_part
from .made_links import make_links
from .replicas import average_gradients, wrap_in_ddp
from .settings import (
    StageSettings,
    WindowPlan,
    check_continues,
    check_corrections,
    check_rules,
    check_ties,
    learning_delays,
    planned_window,
    usual_accumulate,
)
from .stage import Stage
from .tied_line import StageTies
from .transport import Transport, distributed
from .transport.elastic import ElasticTransport

__all__ = ["Stages"]


class Stages(StageFigures):
    """Trains a decoupled network as stages, one in each process.

    All processes create it, and call `step`, `predict`, `gather` and `close` in the same order.

    Args:
        net: the network that `decouple` returned, equal in all processes and in training mode; every cut ends
            a stage. An ``nn.Sequential`` is split into its children. Of any other network each process runs
            the forward pass up to the end of its part, without computing what other processes compute.
        criterion: takes output and target; used by the last stage.
        optimizer: takes parameters, returns an optimizer, or several as a list. It is called once, with the
            parameters of this stage's module and of the rule at its end, which is trained in the process that
            uses it.
        window: the number of steps that an answer may be late before a stage waits for it. None to adapt it
            to the link: round trip over step time, plus two. Or a plan, whose ``window`` is taken.
        deterministic: whether lags are counted in steps instead of arrival times: in step ``t`` the rule
            learns from the answer for batch ``t − window``. Two runs then give the same weights, which are
            those of `InProcess` with ``Lag(observe=window)``.
        observe_prob: the share of the batches whose true message is sent back.
        observe_rows: the share of a batch's rows (its first dimension) for which the message is sent, and which the rule
            learns from. With 0.25 a rule sees a quarter of every batch, in place of every fourth batch, for the same bytes
            and products; which rows they are depends on ``seed`` and the number of the step.
        wire_dtype: the dtype in which tensors are sent, such as ``torch.bfloat16``; None for the network's
            own. Short for ``codecs.cast``.
        codec: the codec of activations, and of messages unless these have their own; see `codecs`.
        message_codec: the codec of messages, such as ``codecs.top_k()``; None for that of activations.
        accumulate: the number of steps (microbatches) of which an update is made: the mean of their gradients. A module
            that waits ``d`` steps for its answers makes its update ``ceil(d / accumulate)`` updates late. None for the
            smallest number with which no gradient is more than one update late: 1 where credit comes at once, and where
            stages wait, the window times the number of waits in a row. (A rule that hands over waits at first only,
            and has 1.) The steps of an update that is not complete are not learned from, at the end of training either.
        tied_lag: updates a parameter that the first and the last stage both use (an embedding that also makes the scores)
            from the gradients of both, each of which has a copy: they send each other what they have learned, as it is,
            on a line of their own, and apply the sum that many updates later, so that the copies stay equal. 0 makes the
            first stage wait for the last in every update; as many updates as batches may be under way between
            them let it run ahead. None to refuse such parameters.
        target: a batch of targets, for shape and dtype, if targets are to be sent along with the activations
            from the first stage. None if every process has its own, in the same order.
        replicas: the number of copies of every stage, which average their gradients (data parallel). Each has
            its own batches.
        rule_options: options for the rule's parameter group, such as ``{"lr": 1e-3}``.
        input_options: the same for the input rule, if ``net`` has synthetic inputs: a stage whose input is
            late then trains on a synthetic one, up to ``window`` steps ahead of the stage below. Every
            process must then give the network's input.
        example: positional arguments of a forward pass, or a mapping of keyword arguments, that are
            representative of all steps; None for the example that `decouple` was given.
        penalty: a term of the loss that does not depend on the output; a function of a module's parameters,
            or a mapping for some modules by name, as in `InProcess`.
        clip_norm: the largest norm of the gradients of all stages together; larger gradients are scaled down,
            as ``clip_grad_norm_`` does for the whole network. Gradients of rules are not clipped. Every step
            then waits for all stages: the norm is known when the last one has learned.
        monitor: measures the quality of the credits of this stage; None to measure nothing.
        guard: whether to stop with `DivergedError` at an activation, credit, message or loss that is not
            finite, before anything learns from it. ``Guard(skip=True)`` skips it, counts it, and continues.
        timeline: records what happens in this stage, in order; None to record nothing.
        timeout_s: how long a stage waits for another before it gives up, in seconds.
        seed: the seed of the draws for ``observe_prob`` and ``observe_rows``.
        transport: how the processes reach each other; None for the process group of ``torch.distributed``.
        on_loss: what a stage does when a neighbour dies, freezes or is cut off. ``"stop"``: all stop, with the cause.
            ``"continue"``: it goes on with the credit of its rule, without an upper neighbour, and on synthetic inputs, if it
            has them, without a lower one, for which it else waits up to ``timeout_s``; until the neighbour is back, or another
            process has taken its place. Needs an `ElasticGloo` as transport, and the numbers of batches from `turns`.
        patience_s: how long a stage that continues waits for a neighbour without a sign of life before it takes it for gone, in
            seconds. It then waits no more for it, until it is back. For a neighbour that lives, which may wait for another
            itself, stage k of K waits up to K − 1 − k times as long if it is above, up to k times if it is below.
        settle_steps: the number of answers that are not learned from when the stage above has come back.
        copy_share: how many bytes for copies of this stage's state may go along with what it sends up, as a share of that. The
            stage above keeps the last copy in memory (of the last stage the one below), for `recover`. 0 for no copies.

    Attributes:
        optimizers: the optimizers of this stage; an empty list if it has nothing to train.
        module: the module of this stage.

    Raises:
        ConfigError: if a setting is out of range, the network cannot be split, the number of processes is not
            stages × replicas, or the processes differ in what they are about to run.
        CutError: if something besides the message crosses a cut that cannot be computed from the network's
            inputs.
        StageError: if a process does not come, or fails.
    """

    def __init__(
        self,
        net: Decoupled,
        criterion: Criterion,
        optimizer: OptimizerFactory,
        *,
        window: int | WindowPlan | None = None,
        deterministic: bool = False,
        observe_prob: float = 1.0,
        observe_rows: float = 1.0,
        wire_dtype: torch.dtype | None = None,
        codec: Codec | None = None,
        message_codec: Codec | None = None,
        accumulate: int | None = None,
        tied_lag: int | None = None,
        target: Tensor | None = None,
        replicas: int = 1,
        rule_options: Mapping[str, Any] | None = None,
        input_options: Mapping[str, Any] | None = None,
        example: tuple[Any, ...] | Mapping[str, Any] | None = None,
        penalty: Penalty | None = None,
        clip_norm: float | None = None,
        monitor: Monitor | None = None,
        guard: bool | Guard = True,
        timeline: Timeline | None = None,
        timeout_s: float = 300.0,
        seed: int = 0,
        transport: Transport | ElasticTransport | None = None,
        on_loss: str = "stop",
        patience_s: float = 1.0,
        settle_steps: int = 0,
        copy_share: float = 0.0,
    ) -> None:
        if not isinstance(net, Decoupled):
            raise ConfigError(f"got a {type(net).__name__}, expected what synthgrad.decouple returned")
        settings = StageSettings(
            window=planned_window(window),
            deterministic=deterministic,
            observe_prob=observe_prob,
            wire_dtype=wire_dtype,
            target=target,
            timeout_s=timeout_s,
            seed=seed,
            codec=codec,
            accumulate=accumulate,
            message_codec=message_codec,
            observe_rows=observe_rows,
            tied_lag=tied_lag,
            on_loss=on_loss,
            patience_s=patience_s,
            settle_steps=settle_steps,
            copy_share=copy_share,
        )
        settings.check()
        check_criterion(criterion)
        check_rules(net, settings, replicas)
        check_corrections(net, settings, replicas, clip_norm)
        check_ties(net, settings, replicas, {"clip_norm": clip_norm, "penalty": penalty})
        check_codecs(
            [site.shape for site in net.graph.sites.values()], codec=codec, message_codec=message_codec
        )
        self.net = net
        check_continues(
            net,
            settings,
            replicas,
            {"clip_norm": clip_norm, "monitor": monitor},
            can_renew=isinstance(transport, ElasticTransport),
        )
        access = distributed() if transport is None else transport
        self._clock = access.clock
        self.layout = layout = RankLayout.of(access.rank, access.world_size, len(net.graph.modules), replicas)
        coordinator = (
            None if isinstance(access, ElasticTransport) else Coordinator.of(access, layout, timeout_s)
        )
        delays = learning_delays(net, settings.window)
        self._accumulate = usual_accumulate(net, delays) if accumulate is None else accumulate
        try:
            self._instruments = Instruments(Guard.of(guard), monitor, timeline)
            own = make_local_part(
                net, layout, example, optimizer, rule_options, input_options, delays=delays, tied_lag=tied_lag
            )
            self._name, self._rule, part, supplies = own.name, own.rule, own.part, own.supplies
            self.module = part.module
            self._own_optimizers = own.optimizers
            self.optimizers: list[Optimizer] = [*own.optimizers, *own.ties.optimizers]
            penalties = Penalties(net, penalty)
            self._clip = (
                None
                if clip_norm is None or coordinator is None
                else Clip(clip_norm, part.module, replicas, coordinator, timeout_s)
            )
        except Exception as error:
            if coordinator is not None:
                coordinator.alarm.ring(error)  # the other processes are waiting in the handshake
                coordinator.peers.leave()
            raise
        self._links = make_links(
            access,
            coordinator,
            net,
            own,
            layout,
            settings,
            {"clip_norm": clip_norm, "accumulate": self._accumulate},
            monitored=monitor is not None,
        )
        around = self._links.lines.around
        self._ties = (
            None
            if around is None or coordinator is None
            else StageTies(own.ties, self._accumulate, tied_lag or 0, around, layout, coordinator, timeout_s)
        )
        below = self._links.below
        names = list(net.graph.sites)
        copies = layout.stage > 0 and part.inputs is None and names[layout.stage - 1] in net.graph.copies
        self._watch = GradientWatch(net, self.optimizers, self._name)
        self._updates = Updates(
            [self._name],
            [list(part.module.parameters())],
            [own.optimizers],
            [delays[layout.stage]],
            self._accumulate,
            versions=None,
            before=self._before_update,
            ties=self._ties,
        )
        with self._guarded():  # DistributedDataParallel waits for the replicas when it is created
            self._stage = Stage(
                wrap_in_ddp(part, self._links.lines.replicas),
                net.units,
                check_loss_once(criterion, net) if layout.is_last else None,
                own.rule,
                below=below,
                above=self._links.above,
                window=self._links.window,
                deterministic=deterministic,
                instruments=self._instruments,
                name=self._name,
                sends_target=target is not None,
                late=None
                if supplies is None or below is None
                else LateInput(supplies, below, self._instruments),
                copies=copies,
                penalty=penalties.function(self._name),
                updates=self._updates,
                observe_rows=observe_rows,
                seed=seed,
                # With clipping there is one norm per step over all stages, so a step cannot have a second update.
                apart=self._clip is None,
            )
        self._gather = Gather(net, own.parts, coordinator, replicas, timeout_s)
        self._step = 0
        self._passes = 0
        self._num_skipped = 0
        self._busy_s = 0.0
        if isinstance(self._links, ElasticLinks):
            self._links.offer(self._own_weights)

    @property
    def optimizer(self) -> Optimizer | None:
        """The first of `optimizers`, or None if there is none."""
        return self.optimizers[0] if self.optimizers else None

    # -- training ---------------------------------------------------------------------------------------

    def step(
        self,
        x: Any = None,
        y: Any = None,
        *,
        context: Tensor | None = None,
        ids: Tensor | None = None,
        **inputs: Any,
    ) -> StepRecord:
        """Run one step of this stage.

        Waits for the activation from below, and for an answer if the window is full.

        Args:
            x: the input, ``(B, ...)``; a tuple of the model's positional arguments; or a mapping of its
                keyword arguments. Needed by the first stage; the inputs that others need are sent to them.
            y: the target. Every process gives it, unless targets are sent along with the activations: then
                only the first stage.
            context: the context of the rules; by default ``y``.
            ids: ``(B,)`` int64, the ids of the examples.
            inputs: further keyword arguments of the model.

        Returns:
            The record; its loss is that of the last stage, None elsewhere.

        Raises:
            StageError: if another process has stopped, with the cause.
            DivergedError: if a message or the loss is not finite.
            DataError: if this process was given other examples than the stage below.
            CutError: if this batch runs through the network in another way than the example did, or the
                criterion has a term that does not depend on the output.
        """
        start, waited = self._clock.now(), self.waited_s
        record = StepRecord(self._step)
        with self._guarded():
            if not self._step:
                warn_of_evaluation(self.net)
            clear_autocast_cache()
            self._watch.clear_gradients()
            passed = self._passed(x, inputs)
            with restore_buffers_after_skips(self._stage.part.module, self._instruments):
                record.loss = self._stage.run(self._step, passed, y, context, ids).loss
            updated = self._update()
            if self._ties is not None:
                self._ties.end_of_step(self._step)
            if updated:
                record.updated.append(self._name)
                self._instruments.log("update", self._name, self._step)
            self._watch.check_after_step()
        busy_s = self._clock.now() - start - (self.waited_s - waited)
        self._links.window.record_step(busy_s)
        self._busy_s += busy_s
        self._step += 1
        self._links.advanced(self._step)
        if isinstance(self._links, ElasticLinks) and (sent := self._links.keeper.copies.sent).is_done:
            sent.take(self._step, saved_state(self._whole_state()))
        return record

    def recover(self, timeout_s: float = 10.0, *, average: bool = False) -> int | None:
        """Load the copy of this stage that a neighbour keeps, if it is newer than what this process has loaded.

        To be called before the first turn, in a process that takes the place of another. Waits until a neighbour is there.

        Args:
            timeout_s: how long to wait for it, in seconds.
            average: whether to begin with the average of the neighbours' weights, where there is no copy and nothing was loaded
                (as CheckFree does, arXiv:2506.15461, which weighs them). Optimizer and rule begin anew.

        Returns:
            After how many steps the state was as it is now, of an average the least of the neighbours; None if there was no
            newer copy.

        Raises:
            StageError: if an average is wanted, and no neighbour has weights of the same names, but for numbers, and shapes.
        """
        if not isinstance(self._links, ElasticLinks) or self._links.membership.life == 1:
            return None
        with self._guarded():
            found = self._links.fetched(timeout_s)
        if (
            found is not None
            and found.data is not None
            and found.step is not None
            and found.step > self._step
        ):
            # The process that was here before may have had another device.
            own = next(iter(self.module.state_dict().values()), torch.empty(0))
            state = loaded_state(found.data, own.device)
            self.net.load_state_dict(state["net"], strict=False)
            self.load_state_dict(state["trainer"])
            return found.step
        if not average or self._step:
            return None
        with self._guarded():
            near = self._links.weights_of_neighbours(timeout_s)
            step = take_average(self.module.state_dict(), near)
            if step is None:
                raise StageError(
                    f"stage {self.layout.stage}: nobody keeps a copy of it, and no neighbour is made alike (the same names and shapes); load "
                    "a snapshot, or leave out average=True to begin with fresh weights"
                )
        return step

    def _own_weights(self) -> tuple[int, Tensor]:
        """Return the steps made, and the weights of this stage, as bytes."""
        return self._step, saved_state(self.module.state_dict())

    def _whole_state(self) -> dict[str, Any]:
        """Return the weights of this stage, and what else its engine needs."""
        own = set(self._gather.names(self.net, self.layout.stage))
        weights = {name: t for name, t in self.net.state_dict().items() if name in own}
        return {"net": weights, "trainer": self.state_dict()}

    def turns(self, until: int) -> Iterator[int]:
        """Yield the numbers of the batches that this stage trains on, up to but without ``until``.

        ::

            for number in trainer.turns(10_000):
                trainer.step(*batch(number))

        They follow each other, unless stages go on without each other (``on_loss="continue"``): then the batch that comes from
        below says which one is next. So a process that takes the place of another begins where its neighbours are, and data
        has to be read by number, not in a row. Ends earlier if the stage below does.

        Raises:
            StageError: if the stage below has been gone for longer than ``timeout_s``.
        """
        late = self._stage.late
        while True:
            with self._guarded():
                number = self._links.next_number(self._step, synthetic=late is not None)
            if late is not None and number is not None:
                # The stage below is further: this one has lost time.
                number = max(number, late.early_number or 0)
            if number is None or number >= until:
                return
            if number > self._step:
                self._num_skipped += number - self._step
                self._step = number
                if late is not None:
                    late.skip()
            yield self._step

    def _update(self) -> bool:
        """Update module and rule, if it is time and there is anything to learn; return whether there was."""
        updates, step = self._updates, self._step
        if self._stage.had_turn:
            return self._stage.updated or updates.end_of_step(0, step)
        if not self._own_optimizers:
            if self._ties is not None:
                self._ties.take(0)
            if (step + 1) % self._accumulate == 0:
                self._before_update()  # the others wait for it
            return False
        learned = has_gradient(self._own_optimizers)
        made = updates.add(0, step, self._stage.learned_from, learned=learned, complete=True)
        return made or updates.end_of_step(0, step)

    def _before_update(self) -> None:
        """Average the rule's gradients over replicas, and clip those of the module. All call it in the same steps."""
        if self._links.lines.replicas is not None and self._rule is not None:
            average_gradients(self._rule, self._links.lines.replicas)
        if self._clip is not None:
            self._clip()

    def _passed(self, x: Any, inputs: Mapping[str, Any]) -> ForwardArgs | None:
        """Return the network's arguments; None if this process was given none."""
        if x is None and not inputs:
            if self.layout.is_first:
                raise ConfigError("the first stage got no input: call step(x, y) there")
            return None
        return forward_args(x, inputs)

    def predict(self, x: Any = None, **inputs: Any) -> Any:
        """Run forward through all stages, in evaluation mode.

        Return the output in the last stage, None elsewhere.

        Args:
            x: the input, as in `step`; only the first stage reads it.
            inputs: further keyword arguments of the model.

        Raises:
            StageError: if another process has stopped, with the cause.
        """
        self._needs_all("predict")
        self._passes += 1
        with self._guarded(), torch.no_grad(), evaluating(self.net, self._stage.part.module):
            return self._stage.predict(self._passes - 1, self._passed(x, inputs))

    def gather(self) -> None:
        """Copy the weights of all stages into the network of every process. Blocks; all must call it.

        Raises:
            StageError: if another process has stopped, with the cause.
        """
        self._needs_all("gather")
        with self._guarded():
            self._gather()

    def _needs_all(self, what: str) -> None:
        if isinstance(self._links, ElasticLinks):
            raise ConfigError(
                f"{what}() needs all stages, and with on_loss='continue' some may be gone: save state_dict() of every process, "
                "and put them together with stages.assemble"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, in addition to ``net.state_dict()``.

        It contains the optimizers, the state of the random draws, and the messages in flight. Blocks: all
        must call it between the same two steps, and each saves its own state with its own
        ``net.state_dict()``. `assemble` puts these together.

        Raises:
            StageError: if another process has stopped, with the cause.
        """
        with self._guarded():
            self._links.drain()
            if self._ties is not None:
                self._ties.drain(self._step)
        return {
            "ties": None if self._ties is None else self._ties.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self._step,
            "passes": self._passes,
            "module": self._stage.state_dict(),
            "owned": self._gather.names(self.net, self.layout.stage),
            "by_name": optimizers_by_name(self.net, self.optimizers),
            "updates": self._updates.state_dict(),
            "links": self._links.state_dict(),
        }

    @explain_load_errors
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the state that `state_dict` returned for this stage, in an engine that was built in the same
        way.

        Does not block. All must call it, before their first step.

        Raises:
            ConfigError: if it is the state of another stage.
        """
        self._links.load_state_dict(state["links"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self._step, self._passes = int(state["step"]), int(state["passes"])
        self._stage.load_state_dict(state["module"])
        if isinstance(self._links, ElasticLinks) and self._stage.late is not None:
            self._stage.late.give_up()  # what was under way then will not come
        if "updates" in state:  # states of earlier versions have none
            self._updates.load_state_dict(state["updates"])
        if self._ties is not None:
            self._ties.load_state_dict(state["ties"])

    def begin_at(self, step: int) -> None:
        """Set the number of the first step, as `AssembledRun.hand_to` does. All must call it."""
        self._step = step
        self._links.begin_at(step)

    def close(self) -> None:
        """Disconnect from the neighbours in order.

        Blocks; all must call it. The process group stays as it is.

        Everything that belongs to the engine ends: its threads, groups and connections.

        Raises:
            StageError: if another process has stopped, with the cause, or has processed another number of
                batches.
        """
        self._instruments.flush()
        if self._links.is_closed:
            return
        with self._guarded():
            if not isinstance(self._links, ElasticLinks):
                self._stage.catch_up()
            if self._ties is not None:
                self._ties.line.close()
            self._links.close(self._step)

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.close()
        else:
            self._forget()
            self._links.fail(error)

    def _guarded(self) -> AbstractContextManager[None]:
        return self._links.guarded(self._forget)

    def _forget(self) -> None:
        """Drop the gradients of a step that has failed."""
        for optimizer in self.optimizers:
            zero_grad(optimizer)
        if self._ties is not None:
            self._ties.forget()

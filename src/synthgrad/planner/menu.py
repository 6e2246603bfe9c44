"""Every schedule that a plan compares, for a model on some machines: which job it is, and its best setting.

::

    table of costs ──► cuts ──► costs of stages ──► job ──► run ──► row
                        │            │
                        │            └ of the machine that each is on, of several batches to an update
                        └ even ones: with the rule for decoupled stages, without it for pipelines

All rows are of the same examples. A schedule whose processes have two parts of the network gets cuts of its own. What
cannot be done (fewer examples than processes, a network that has too few parts) is left out with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ..core import ConfigError
from .actions import Job
from .costs import StageCost
from .cuts import balanced_cuts
from .links import Link, Network, Wire
from .run import Cause, Run
from .simulation import Machine, simulate
from .table import CostTable

if TYPE_CHECKING:
    from .programs import Codec

__all__ = ["DECOUPLED", "KINDS", "PIPELINES", "Kind", "Menu", "Row", "learns_alone"]

#: What a schedule learns from: the gradients of backpropagation, the credit of rules, or true gradients that come late.
Kind = Literal["synchronous", "decoupled", "delayed"]

#: Parts of the network in each process, by the name of a pipeline.
PIPELINES: Mapping[str, int] = {
    "gpipe": 1,
    "1f1b": 1,
    "interleaved_1f1b": 2,
    "zero_bubble": 2,
    "zero_bubble_v": 2,
}
#: Schedules whose stages have rules.
DECOUPLED = ("stages", "local_loss")
#: All schedules.
KINDS: Mapping[str, Kind] = {
    "backprop": "synchronous",
    **dict.fromkeys(PIPELINES, "synchronous"),
    "data_parallel": "synchronous",
    **dict.fromkeys(DECOUPLED, "decoupled"),
    "delayed": "delayed",
}

#: The largest window that is tried, as `engines.Stages` chooses none that is larger.
_MOST_STEPS = 64
#: A wider window must save this share of a step.
_WORTH = 0.02
#: So must a codec to have a row of its own, where rules do not ask for one.
_SAVED = 0.05
#: More microbatches are not tried once they take so many times as long as the best number.
_TOO_MANY = 1.1
#: Less idle time has no cause.
_IDLE = 0.005


@dataclass(frozen=True, slots=True)
class Row:
    """A schedule in its best setting.

    Attributes:
        schedule: its name.
        kind: what it learns from.
        run: the simulated run.
        job: what was simulated, to do it again with a trace.
        batch_size: examples of a batch, of which `step_s` is.
        cuts: names of the submodules after which the network is cut; empty where every process has all of it.
        parameter_bytes: of each process.
        microbatches: of a pipeline.
        share: of the messages that are sent, of decoupled stages.
        codec: of activations and messages.
        window: steps that an answer may be late.
        idle_for: what keeps the processes idle most: without it the step would be shorter by so much more than without the
            other causes. None where none of them matters.
    """

    schedule: str
    kind: Kind
    run: Run
    job: Job = field(repr=False)
    batch_size: int
    cuts: tuple[str, ...] = ()
    parameter_bytes: tuple[float, ...] = ()
    microbatches: int | None = None
    share: float | None = None
    codec: str | None = None
    window: int | None = None
    idle_for: Cause | None = None

    @property
    def step_s(self) -> float:
        """Seconds of a batch. Where several of them make an update, their share of that is in it."""
        return self.run.step_s * self.batch_size / self.run.batch_size

    @property
    def examples_per_s(self) -> float:
        """Throughput."""
        return self.run.examples_per_s

    @property
    def bytes_per_step(self) -> float:
        """Bytes that all processes send for a batch."""
        return self.run.bytes_per_step * self.batch_size / self.run.batch_size

    @property
    def memory_bytes(self) -> float:
        """The most that a process holds: its parameters, activations for backward passes, and messages."""
        return max(
            use.peak_bytes + size for use, size in zip(self.run.stages, self.parameter_bytes, strict=True)
        )

    @property
    def setting(self) -> str:
        """The setting in words."""
        found: list[str] = []
        if self.microbatches is not None:
            found.append(f"{self.microbatches} microbatches")
        if self.share is not None and self.schedule == "stages":
            found.append("all messages" if self.share == 1 else f"{100 * self.share:g} % of messages")
        if self.codec not in (None, "float32"):
            found.append(str(self.codec))
        if self.window is not None:
            found.append(f"window {self.window}")
        return ", ".join(found)

    @property
    def name(self) -> str:
        """Schedule and setting."""
        return f"{self.schedule} ({self.setting})" if self.setting else self.schedule


@dataclass(frozen=True)
class Menu:
    """Makes the rows of a plan.

    Attributes:
        table: costs of the network, with those of the rule.
        stages: number of processes.
        schedules: names from `KINDS`.
        speeds: of the processes' machines; 1 is the machine of the table.
        microbatches: numbers to choose from.
        shares: of the messages that are sent.
        codecs: of activations and messages.
        accumulate: batches to an update.
        window: steps that an answer may be late; None to choose it.
        local_table: costs with those of a local loss in place of the rule, or why they are not known.
        machines: processes that share cores.
        seed: of draws, jitter and losses.
        left_out: fills with the reason of each schedule that has no row.
    """

    table: CostTable
    stages: int
    schedules: Sequence[str]
    speeds: tuple[float, ...]
    microbatches: Sequence[int]
    shares: Sequence[float]
    codecs: Sequence[Codec]
    accumulate: int = 1
    window: int | None = None
    local_table: CostTable | str = "the costs of a local loss are not known"
    machines: Sequence[Machine] = ()
    seed: int = 0
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    _jobs: dict[tuple[str, tuple[StageCost, ...], int], Job] = field(
        default_factory=dict[tuple[str, tuple[StageCost, ...], int], Job], repr=False
    )

    def rows(self, network: Network) -> list[Row]:
        """Return the rows for a network, the fastest first."""
        rows = [row for name in self.schedules for row in self.of(name, network)]
        rows = [replace(row, idle_for=self._cause(row, network)) for row in rows]
        # Of equally fast ones, to three digits, those come first that send the most.
        return sorted(
            rows,
            key=lambda r: (
                float(f"{r.step_s:.3g}"),
                r.kind,
                -(r.share or 0.0),
                r.codec not in (None, "float32"),
            ),
        )

    def _cause(self, row: Row, network: Network) -> Cause | None:
        """Return what most of the idle time is for, by the same job over links without delays, and over none.

        A process that waits for another does not know why that is late: it may be waiting for a message itself.
        """
        if row.schedule == "backprop" or row.run.idle_share < _IDLE:
            return None
        near = replace(network, links=tuple(Link(*map(_near, (k.up, k.down))) for k in network.links))
        none = replace(network, links=(Link(),), rendezvous=False, congestion=None, inbound=False)
        steps_s = [row.run.step_s, *(self._run(row.job, other).step_s for other in (near, none))]
        busy_s = row.run.step_s * (1 - row.run.idle_share)
        lost: dict[Cause, float] = {
            "latency": steps_s[0] - steps_s[1],
            "bandwidth": steps_s[1] - steps_s[2],
            "peer": steps_s[2] - busy_s,
        }
        cause = max(lost, key=lost.__getitem__)
        return cause if lost[cause] > 0 else None

    def of(self, name: str, network: Network, codecs: Sequence[Codec] | None = None) -> list[Row]:
        """Return the rows of a schedule; none if it cannot be done.

        Args:
            name: of the schedule.
            network: between the processes.
            codecs: in place of all of them.
        """
        try:
            return list(self._of(name, network, self.codecs if codecs is None else codecs))
        except _LeftOut as reason:
            self.left_out[name] = str(reason)
            return []

    def again(self, row: Row, network: Network) -> Row:
        """Return the row of decoupled stages, with the same share and codec, for another network."""
        codec = next(codec for codec in self.codecs if codec.name == row.codec)
        return self._stages(row.schedule, network, 1.0 if row.share is None else row.share, codec)

    def _of(self, name: str, network: Network, codecs: Sequence[Codec]) -> Iterator[Row]:
        kind = KINDS[name]
        if name == "backprop":
            yield self._one_machine()
        elif kind == "decoupled":
            for share in self.shares if name == "stages" else (1.0,):
                for codec in codecs:
                    yield self._stages(name, network, share, codec)
        else:
            first: Row | None = None
            for codec in codecs:
                row = self._exact(name, network, codec)
                if first is None or row.step_s < (1 - _SAVED) * first.step_s:
                    yield row
                first = first or row

    def _exact(self, name: str, network: Network, codec: Codec) -> Row:
        """Return the row of a schedule that learns from true gradients."""
        if name in PIPELINES:
            return self._pipeline(name, network, codec)
        if name == "data_parallel":
            return self._data_parallel(name, network, codec)
        return self._stages(name, network, 1.0, codec)

    # -- one network in each process ------------------------------------------------------------------------

    def _one_machine(self) -> Row:
        from .programs import backpropagation

        cost = _batches(self._whole(), self.accumulate).scaled(max(self.speeds))
        job = backpropagation(cost, batch_size=self._examples)
        run = simulate(job, Network())
        return Row("backprop", "synchronous", run, job, self._batch, (), (cost.parameter_bytes,))

    def _data_parallel(self, name: str, network: Network, codec: Codec) -> Row:
        from .programs import data_parallel

        if self._batch < self.stages:
            raise _LeftOut(f"a batch of {self._batch} has no example for each of {self.stages} processes")
        whole = _batches(self._whole(), self.accumulate).scaled(min(self.speeds))
        sent = replace(whole, parameter_bytes=codec.ratio * whole.parameter_bytes)
        job = data_parallel(sent, processes=self.stages, batch_size=self._examples)
        size = (whole.parameter_bytes,) * self.stages
        return Row(name, KINDS[name], self._run(job, network), job, self._batch, (), size, codec=codec.name)

    # -- parts of it ----------------------------------------------------------------------------------------

    def _pipeline(self, name: str, network: Network, codec: Codec) -> Row:
        places = _processes_of(name, self.stages)
        if len(places) > len(self.table.modules):
            raise _LeftOut(
                f"it needs {len(places)} parts, and the network can be cut into {len(self.table.modules)}"
            )
        speeds = [self.speeds[process] for process in places]
        cuts = balanced_cuts(
            self.table, len(places), speeds=speeds, link_s=_link_s(network, codec), decoupled=False
        )
        plain = [_batches(cost, self.accumulate) for cost in self.table.stages(cuts)]
        costs = [
            replace(cost, output_bytes=codec.ratio * cost.output_bytes).scaled(speed)
            for cost, speed in zip(plain, speeds, strict=True)
        ]
        size = _summed((cost.parameter_bytes for cost in plain), places, self.stages)
        found: list[Row] = []
        refused: list[str] = []
        for count in sorted(self.microbatches):
            try:
                job = self._pipeline_job(name, tuple(costs), count)
            except ConfigError as error:
                refused.append(str(error))
                continue
            run = self._run(job, network)
            found.append(
                Row(name, KINDS[name], run, job, self._batch, tuple(cuts), size, count, codec=codec.name)
            )
            # Smaller microbatches shorten the bubble ever less, and cost as much for each message and call.
            if run.step_s > _TOO_MANY * min(row.run.step_s for row in found):
                break
        if not found:
            raise _LeftOut(refused[-1] if refused else f"a batch of {self._batch} has no microbatches")
        return min(found, key=lambda row: row.step_s)

    def _pipeline_job(self, name: str, costs: tuple[StageCost, ...], count: int) -> Job:
        """Return the job of a pipeline, the same one for every round trip."""
        from .programs import pipeline

        key = (name, costs, count)
        if key not in self._jobs:
            self._jobs[key] = pipeline(
                name, costs, processes=self.stages, microbatches=count, batch_size=self._examples
            )
        return self._jobs[key]

    def _stages(self, name: str, network: Network, share: float, codec: Codec) -> Row:
        from .programs import decoupled, delayed

        table = self._table_of(name)
        with_rule = name != "delayed"
        cuts = balanced_cuts(
            table, self.stages, speeds=self.speeds, link_s=_link_s(network, codec), decoupled=with_rule
        )
        plain = table.stages(cuts)
        costs = [cost.scaled(speed) for cost, speed in zip(plain, self.speeds, strict=True)]

        def made(window: int) -> tuple[Job, Run]:
            given: dict[str, Any] = {
                "link": network,
                "window": window,
                "codec": codec,
                "accumulate": self.accumulate,
                "batch_size": self._batch,
                "name": name,
            }
            if with_rule:
                given |= {"share": share, "listens": name == "stages", "seed": self.seed}
            make = decoupled if with_rule else delayed
            job = make(costs, **given)
            if self.accumulate > 1:  # as many batches as make whole updates
                updates = math.ceil((job.steps - 1 - job.warm) / self.accumulate)
                job = make(costs, steps=job.warm + 1 + updates * self.accumulate, **given)
            return job, self._run(job, network)

        window = self._first_window(costs, network)
        job, run = made(window)
        while self.window is None and window < _MOST_STEPS:
            wider = min(2 * window, _MOST_STEPS)
            other = made(wider)
            if other[1].step_s > (1 - _WORTH) * run.step_s:
                break
            window, (job, run) = wider, other
        return Row(
            name, KINDS[name], run, job, self._batch, tuple(cuts),
            tuple(cost.parameter_bytes for cost in plain),
            share=share if name == "stages" else None, codec=codec.name, window=window,
        )  # fmt: skip

    def _table_of(self, name: str) -> CostTable:
        """Return the table whose rule a schedule has.

        Raises:
            _LeftOut: if the costs of this rule are not known.
        """
        if name == "delayed":
            return self.table
        alone = learns_alone(self.table)
        if name == "local_loss":
            table = self.table if alone else self.local_table
            if isinstance(table, str):
                raise _LeftOut(table)
            return table
        if alone:
            raise _LeftOut("the rule of the table learns from no messages")
        return self.table

    def _first_window(self, costs: Sequence[StageCost], network: Network) -> int:
        from .programs import window_for

        if self.window is not None:
            return self.window
        return max(
            window_for(network.link(k).rtt_s, max(costs[k].decoupled_s, costs[k + 1].decoupled_s))
            for k in range(len(costs) - 1)
        )

    def _run(self, job: Job, network: Network) -> Run:
        return simulate(job, network, machines=self.machines, seed=self.seed)

    def _whole(self) -> StageCost:
        return self.table.stages([])[0]

    @property
    def _batch(self) -> int:
        return self.table.batch_size

    @property
    def _examples(self) -> int:
        return self.table.batch_size * self.accumulate


class _LeftOut(Exception):
    """A schedule that cannot be done, and why."""


def learns_alone(table: CostTable) -> bool:
    """Return whether the rule of a table learns from losses of its own and from no messages."""
    costs = [module.cost for module in table.modules[:-1]]
    return any(cost.local_s for cost in costs) and not any(cost.observe_s for cost in costs)


def _processes_of(name: str, processes: int) -> list[int]:
    """Return the process of each part of the network: all parts in turn, or there and back."""
    if PIPELINES[name] == 1:
        return list(range(processes))
    if name == "zero_bubble_v":
        return [*range(processes), *reversed(range(processes))]
    return [*range(processes), *range(processes)]


def _summed(sizes: Iterable[float], places: Sequence[int], processes: int) -> tuple[float, ...]:
    found = [0.0] * processes
    for size, process in zip(sizes, places, strict=True):
        found[process] += size
    return tuple(found)


def _batches(cost: StageCost, count: int) -> StageCost:
    """Return the cost of several batches with one update."""
    if count == 1:
        return cost

    def times(seconds: float, call_s: float) -> float:
        fixed = min(call_s, seconds)
        return fixed + count * (seconds - fixed)

    backward_s = times(cost.backward_s, cost.backward_call_s)
    inputs_s = cost.backward_input_s
    if inputs_s is not None and cost.backward_s:
        inputs_s *= backward_s / cost.backward_s
    return replace(
        cost,
        forward_s=times(cost.forward_s, cost.forward_call_s),
        backward_s=backward_s,
        backward_input_s=inputs_s,
        output_bytes=count * cost.output_bytes,
        held_bytes=count * cost.held_bytes,
    )


def _near(wire: Wire) -> Wire:
    """Return a wire with all that is latency taken from it."""
    return replace(wire, delay_s=0.0, jitter_s=0.0, loss=0.0)


def _link_s(network: Network, codec: Codec) -> Callable[[float], float]:
    """Return a function of the seconds for which an activation occupies the slowest wire of a network."""
    wires = [wire for link in network.links for wire in (link.up, link.down)]

    def seconds(num_bytes: float) -> float:
        found = max(wire.serialise_s(codec.ratio * num_bytes) for wire in wires)
        return 2 * found if network.inbound else found  # an activation and a gradient, on one wire

    return seconds

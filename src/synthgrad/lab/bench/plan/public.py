"""Steps of pipelines that others measured over slow wires, predicted; and what decoupled stages would take on the same wires.

The figures are those of the two baselines of the Protocol NanoGPT contest (Pluralis Research 2026,
https://github.com/PluralisResearch/ProtocolNanoGPT): a GPT of eight stages, one block in each, with the head at the last.
Its links are emulated at the receiver, where a message begins when it has been sent and the one before it, in the order in
which the process takes them, has arrived::

    begins  = max(sent, the one before arrived)
    arrives = begins + bits ÷ 200 Mbit/s + 50 ms

This is an inbound wire of `Network` whose latency does not overlap. Nothing is fitted: the FLOPs of blocks and head say how
the costs of stages relate, and the step that the contest measured without links says how long they take.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ....planner import Job, Link, Network, Run, StageCost, simulate
from ....planner.programs import decoupled, pipeline

__all__ = ["BASELINES", "WIRES", "Baseline", "public_rows"]

_STAGES, _WIDTH, _CONTEXT, _VOCABULARY = 8, 1024, 1024, 50_304
_SEQUENCES = 512  # of a step

#: One wire to each process.
WIRES = Network.of(Link.of(latency_ms=50, mbit_s=200), inbound=True)

#: Batches that a stage may be ahead of its answers. A message and its answer are on wires for two to four times as long
#: as a batch occupies one, so that more would only make answers older.
_WINDOW = 4
_SHARES = (1.0, 0.25, 0.0)
_STEPS = 8  # of the contest, which are simulated of stages


@dataclass(frozen=True, slots=True)
class Baseline:
    """A network and schedule of the contest, and what it measured.

    Attributes:
        name: of the wire's format, for tables.
        microbatches: parts of a step.
        bytes_per_token: of a message, each way.
        hidden: width of the block's perceptron.
        rank: of the subspace in which blocks below the last one write their outputs; None for whole matrices.
        no_links_s: seconds of a step without links.
        step_s: seconds of a step over the wires.
    """

    name: str
    microbatches: int
    bytes_per_token: int
    hidden: int
    rank: int | None
    no_links_s: float
    step_s: float

    @property
    def tokens(self) -> int:
        """Tokens of a microbatch."""
        return _SEQUENCES * _CONTEXT // self.microbatches

    def flops(self, stage: int) -> float:
        """Return the FLOPs of a stage's forward pass for a token."""
        is_top = stage == _STAGES - 1
        attention = (
            3 * _WIDTH**2 + self._output(_WIDTH, is_top) + _CONTEXT * _WIDTH
        )  # half of the scores are masked
        perceptron = _WIDTH * self.hidden + self._output(self.hidden, is_top)
        head = _WIDTH * _VOCABULARY if is_top else 0
        return 2.0 * (attention + perceptron + head)

    def _output(self, width: int, is_top: bool) -> int:
        if self.rank is None or is_top:
            return width * _WIDTH
        return self.rank * (width + _WIDTH)

    def costs(self) -> list[StageCost]:
        """Return the costs of each stage for a step: so long that 1F1B without links takes what was measured."""
        flops = [_SEQUENCES * _CONTEXT * self.flops(k) for k in range(_STAGES)]
        size = float(_SEQUENCES * _CONTEXT * self.bytes_per_token)
        costs = [StageCost(work, 2 * work, output_bytes=size) for work in flops]
        flops_per_s = simulate(self._job(costs), Network()).step_s / self.no_links_s
        return [cost.scaled(flops_per_s) for cost in costs]

    def run(self) -> Run:
        """Return the simulated steps over the wires."""
        return simulate(self._job(self.costs()), WIRES)

    def _job(self, costs: list[StageCost]) -> Job:
        return pipeline(
            "1f1b", costs, processes=_STAGES, microbatches=self.microbatches, batch_size=_SEQUENCES
        )


#: The contest's baselines, whose records name the figures.
BASELINES = (
    Baseline("bfloat16", 64, 2048, 4096, None, no_links_s=0.539, step_s=100.475),
    Baseline("subspace of rank 160", 32, 322, 11_292, 160, no_links_s=0.657, step_s=19.889),
)

#: Bytes of a token's message of decoupled stages, by the format.
_FORMATS = {"bfloat16": 2 * _WIDTH, "8 bits": _WIDTH}


def public_rows(*, names_only: bool = False) -> Iterator[Mapping[str, Any]]:
    """Yield a row for each baseline, and for decoupled stages with each share of messages and format on the same wires.

    Stages work on the batches that are microbatches of the first baseline, and accumulate them to the same steps. The rule
    at each cut is a linear model of a token's gradient, with the FLOPs of its passes. Each answer that carries no message
    is a header, which occupies the wire for its 50 ms too.

    Args:
        names_only: say which rows there will be.
    """
    for baseline in BASELINES:
        cell = _cell(baseline, baseline.bytes_per_token, baseline.name)
        metrics: dict[str, Any] = {}
        if not names_only:
            run, measured = baseline.run(), baseline.step_s
            metrics = {
                "predicted_ms": 1e3 * run.step_s,
                "measured_ms": 1e3 * measured,
                "error_pct": 100 * (run.step_s / measured - 1),
                **_figures(run, 1),
            }
        yield {"method": "1f1b", "cell": cell, "batch_size": _SEQUENCES, "metrics": metrics}
    baseline = BASELINES[0]
    for name, size in _FORMATS.items():
        for share in _SHARES:
            cell = _cell(baseline, size, name) | {"observe_prob": share, "window": _WINDOW}
            metrics = {}
            if not names_only:
                run = _stages(baseline, size, share)
                count = baseline.microbatches
                metrics = {"predicted_ms": 1e3 * count * run.step_s, **_figures(run, count)}
            yield {"method": "stages", "cell": cell, "batch_size": _SEQUENCES, "metrics": metrics}


def _stages(baseline: Baseline, bytes_per_token: int, share: float) -> Run:
    """Return the simulated batches of decoupled stages, each as large as the baseline's microbatches."""
    count = baseline.microbatches
    per_flop_s = baseline.costs()[0].forward_s / baseline.flops(0)
    rule_s = 2.0 * _WIDTH**2 * per_flop_s  # a linear model's forward pass; it learns in two more
    costs = [
        replace(cost, output_bytes=cost.output_bytes * bytes_per_token / baseline.bytes_per_token)
        for cost in baseline.costs()
    ]
    below = [replace(cost, credit_s=rule_s, observe_s=2 * rule_s) for cost in costs[:-1]]
    batches = [cost.microbatch(count) for cost in (*below, costs[-1])]
    steps = (_STEPS + 1) * count
    job = decoupled(
        batches,
        window=_WINDOW,
        share=share,
        accumulate=count,
        steps=steps,
        batch_size=_SEQUENCES // count,
    )
    return simulate(replace(job, warm=count - 1), WIRES)


def _cell(baseline: Baseline, bytes_per_token: int, name: str) -> dict[str, Any]:
    return {
        "stages": _STAGES,
        "microbatches": baseline.microbatches,
        "tokens": baseline.tokens,
        "bytes_per_token": bytes_per_token,
        "format": name,
        "mbit_s": 200.0,
        "latency_ms": 50.0,
    }


def _figures(run: Run, batches: int) -> dict[str, Any]:
    """Return what a run says of a step of so many batches."""
    return {
        "idle_share": run.idle_share,
        "idle_cause": run.idle_cause,
        "sent_bytes_per_step": batches * run.bytes_per_step,
        "mean_age": run.mean_age,
    }

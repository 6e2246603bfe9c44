"""The schedule in the form of torch.distributed.pipelining, and replicas of stages: both in real processes too."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn import functional as F

from synthgrad import SyntheticGradient, decouple
from synthgrad.engines import InProcess, Lag, Stages
from synthgrad.engines.stages import ScheduleDecoupled
from synthgrad.rules import TrueGradient
from tests.engines.stages import programs
from tests.engines.stages.places import InMemory, Place
from tests.engines.stages.processes import Processes

CPU = torch.device("cpu")


def halves() -> list[nn.Module]:
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
    return [first.double(), nn.Linear(8, 4).double()]


def pipeline_part(place: Place) -> Any:
    """Return a stage of PyTorch's, which wants a process group; in memory what has its attributes."""
    half = halves()[place.rank]
    if place.transport is None:
        return PipelineStage(half, place.rank, 2, CPU)
    return SimpleNamespace(submod=half, stage_index=place.rank, num_stages=2, device=CPU)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


def _schedule(
    place: Place, n: int, kind: str, steps: int, how: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Run a program that uses schedules; only the line that makes one is different."""
    stage = pipeline_part(place)
    if kind == "1f1b":
        schedule: Any = Schedule1F1B(stage, n, F.cross_entropy)
        parameters = list(stage.submod.parameters())
    else:
        torch.manual_seed(1)
        schedule = ScheduleDecoupled(
            stage,
            n,
            F.cross_entropy,
            rule=SyntheticGradient(context=4),
            example=programs.batches(1)[0][0] if place.rank == 0 else None,
            window=1,
            deterministic=True,
            transport=place.transport,
            **(how or {}),
        )
        parameters = list(schedule.parameters())
    optimizer = programs.adam(parameters)
    losses: list[Tensor] = []
    output = None
    for x, y in programs.batches(steps):
        if kind != "1f1b":
            output = schedule.step(*((x,) if place.rank == 0 else ()), target=y, losses=losses)
        elif place.rank == 0:
            output = schedule.step(x)
        else:
            output = schedule.step(target=y, losses=losses)
        optimizer.step()
        optimizer.zero_grad()
    if kind != "1f1b":
        schedule.close()
    return {"weights": weights(stage.submod), "losses": [float(v) for v in losses], "output": output}


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_schedule_trains_both_stages(two: InMemory, n: int) -> None:
    first, last = two.run(_schedule, n, "ours", 40)
    assert len(last["losses"]) == 40 * n
    assert first["losses"] == []
    assert last["output"].shape == (programs.BATCH, programs.CLASSES)
    assert first["output"] is None
    before = [weights(half) for half in halves()]
    for done, start in zip((first, last), before, strict=True):
        changed = {name for name, t in done["weights"].items() if not torch.equal(t, start[name])}
        assert changed == set(start)


def test_the_losses_of_the_first_step_are_those_of_1f1b(two_processes: Processes) -> None:
    ours, theirs = (two_processes.run(_schedule, 2, kind, 1)[1] for kind in ("ours", "1f1b"))
    assert ours["losses"] == pytest.approx(theirs["losses"])
    # The last stage has the true gradient, averaged over microbatches as theirs.
    for name, value in theirs["weights"].items():
        torch.testing.assert_close(ours["weights"][name], value, msg=name)


@pytest.mark.parametrize("where", ["two", "two_processes"])
def test_one_microbatch_equals_the_in_process_engine(where: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(where).run(_schedule, 1, "ours", 10)
    model = nn.Sequential(*halves())
    x, _ = programs.batches(1)[0]
    torch.manual_seed(1)
    net = decouple(model, ["0"], SyntheticGradient(context=4), x)
    engine = InProcess(net, F.cross_entropy, programs.adam, lags={"0": Lag(observe=1)})
    for x, y in programs.batches(10):
        engine.step(x, y)
    for k, outcome in enumerate(found):
        for name, value in outcome["weights"].items():
            torch.testing.assert_close(value, weights(net.model[k])[name], rtol=0, atol=0, msg=name)  # pyright: ignore


def _stages(place: Place, steps: int, how: Mapping[str, Any]) -> dict[str, Tensor]:
    """Train the same network by the other engine; return the weights of this process."""
    model = nn.Sequential(*halves())
    data = programs.batches(steps)
    torch.manual_seed(1)
    net = decouple(model, ["0"], SyntheticGradient(context=4), data[0][0])
    given: dict[str, Any] = {"window": 1, "deterministic": True, "transport": place.transport}
    with Stages(net, F.cross_entropy, programs.adam, **given, **how) as stages:
        for x, y in data:
            stages.step(x if place.rank == 0 else None, y)
        return weights(stages.module)


def test_messages_of_some_rows_are_those_of_the_other_engine(two: InMemory) -> None:
    how: dict[str, Any] = {"observe_rows": 0.5, "seed": 5}
    ours, theirs = two.run(_schedule, 1, "ours", 10, how), two.run(_stages, 10, how)
    every = two.run(_schedule, 1, "ours", 10)
    for one, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one["weights"].values(), other.values(), strict=True))
    first, of_all = ours[0]["weights"], every[0]["weights"]
    assert any(not torch.equal(value, of_all[name]) for name, value in first.items())


def _wrong(place: Place, how: str) -> None:
    stage = pipeline_part(place)
    x, y = programs.batches(1)[0]
    rule = TrueGradient() if how == "waits" else SyntheticGradient()
    example = None if how == "no example" or place.rank else x
    schedule = ScheduleDecoupled(
        stage,
        0 if how == "microbatches" else 2,
        F.cross_entropy,
        rule=rule,
        example=example,
        timeout_s=2,
        transport=place.transport,
    )
    try:
        if how == "no target":
            schedule.step(*((x,) if place.rank == 0 else ()))
        if how == "input":
            schedule.step(x, target=y) if place.rank else schedule.step(target=y)
        if how == "too few":
            schedule.step(*((x[:1],) if place.rank == 0 else ()), target=y[:1])
    finally:
        schedule.close()


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("waits", "as Schedule1F1B does"),
        ("no example", "the first stage needs an example"),
        ("microbatches", "n_microbatches=0"),
        ("no target", "pass target=… on every rank"),
        ("input", "the first stage is given one tensor"),
        ("too few", "1 examples cannot be cut into 2 microbatches"),
    ],
)
def test_what_is_missing_is_named(two: InMemory, how: str, error: str) -> None:
    first, last = two.outcomes(_wrong, how)
    assert error in (first.error or "")
    if how == "no example":
        assert (last.error or "").startswith(
            "StageError: stage 0 (rank 0) stopped: ConfigError: the first stage needs"
        )


# Replicas


def _replicated(place: Place, rule: str, steps: int, lag: int, accumulate: int) -> dict[str, Tensor]:
    """Two stages of two replicas, of which each sees its own batches."""
    net = programs.network(2, rule)
    net.model[0][1].eval()  # pyright: ignore  statistics of half a batch are not those of the whole
    how: dict[str, Any] = {"window": lag, "deterministic": True, "replicas": 2, "accumulate": accumulate}
    with Stages(net, F.cross_entropy, programs.sgd, **how) as stages:
        replica = stages.layout.replica
        for pairs in zip(*(programs.batches(steps, seed=s) for s in (3, 4)), strict=True):
            x, y = pairs[replica]
            stages.step(x if stages.layout.is_first else None, y)
        stages.gather()
    return programs.weights(net)


# Means of classes are those of each replica's own batches, like the statistics of BatchNorm.
@pytest.mark.parametrize(
    ("rule", "lag", "accumulate"),
    [("cdni, table", 0, 1), ("cdni, table", 2, 1), ("cdni, table", 2, 3), ("true", 0, 1), ("no_bprop", 1, 1)],
)
def test_replicas_learn_what_one_stage_learns_from_both_batches(
    four_processes: Processes, rule: str, lag: int, accumulate: int
) -> None:
    found = four_processes.run(_replicated, rule, 8, lag, accumulate)
    net = programs.network(2, rule)
    net.model[0][1].eval()  # pyright: ignore
    lags = {"0": Lag(observe=lag)}
    engine = InProcess(net, F.cross_entropy, programs.sgd, lags=lags, accumulate=accumulate)
    for (x, y), (u, v) in zip(*(programs.batches(8, seed=s) for s in (3, 4)), strict=True):
        engine.step(torch.cat((x, u)), torch.cat((y, v)))
    expected = programs.weights(net)
    for outcome in found:
        for name, value in expected.items():
            torch.testing.assert_close(outcome[name], value, msg=name)

"""Late corrections on stages: the bits of one process, what is refused, and what the modules below hear."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synthgrad import LocalLoss, SyntheticGradient, decouple
from synthgrad.core import ConfigError, Decoupled
from synthgrad.engines import InProcess, Lag, Stages
from synthgrad.engines.codecs import blocks
from synthgrad.engines.stages.transport import Link, run_in_memory
from synthgrad.rules import LateCorrection
from tests.engines.stages import programs
from tests.engines.stages.places import Place
from tests.engines.stages.processes import Processes
from tests.engines.stages.stretches import State, stretch

STEPS, WIDTH, CUTS = 14, 8, ("0", "1")


def network(**given: Any) -> Decoupled:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(programs.INPUTS, WIDTH), nn.Tanh(), nn.Dropout(0.2))]
    layers += [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())]
    layers += [nn.Sequential(nn.Linear(WIDTH, programs.CLASSES))]
    x = programs.batches(1)[0][0].float()
    rules = {name: LateCorrection(LocalLoss(programs.CLASSES), **given) for name in CUTS}
    return decouple(nn.Sequential(*layers), list(CUTS), rules, x)


def data(number: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    return [(x.float(), y) for x, y in programs.batches(number)]


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 0.02)


def stage(
    transport: Any, weight: Any = None, state: State | None = None, until: int = STEPS, **given: Any
) -> tuple[dict[str, Tensor], Any]:
    return stretch(transport, network(weight=weight), adam, data(until), state, **given)


def in_process(lag: int, weight: Any = None, **given: Any) -> Decoupled:
    net = network(weight=weight)
    trainer = InProcess(
        net, programs.per_example, adam, lags={name: Lag(observe=lag) for name in CUTS}, **given
    )
    torch.manual_seed(5)  # the first module alone draws, as the first stage does
    for x, y in data():
        trainer.step(x, y)
    return net


@pytest.mark.parametrize("weight", [None, 0.5, 0.0])
@pytest.mark.parametrize(("window", "size"), [(0, 1), (1, 1), (3, 1), (2, 3)])
def test_stages_give_the_bits_of_one_process(weight: float | None, window: int, size: int) -> None:
    expected = in_process(window, weight, accumulate=size).state_dict()
    found = run_in_memory(
        3,
        lambda t: stage(t, weight, window=window, accumulate=size)[0],
        links=Link(delay_s=0.25),
    )
    for weights in found:
        for name, value in expected.items():
            assert torch.equal(weights[name], value), name


def test_the_weight_changes_what_is_learned() -> None:
    half, none = in_process(2, 0.5).state_dict(), in_process(2, 0.0).state_dict()
    assert not torch.equal(half["model.0.0.weight"], none["model.0.0.weight"])


def test_codecs_lose_as_much_as_in_one_process() -> None:
    expected = in_process(1, codec=blocks(8)).state_dict()
    found = run_in_memory(3, lambda t: stage(t, window=1, codec=blocks(8))[0])
    assert torch.equal(found[0]["model.0.0.weight"], expected["model.0.0.weight"])


@pytest.mark.parametrize("size", [1, 2])
def test_a_run_goes_on_bit_by_bit(size: int) -> None:
    given: dict[str, Any] = {"window": 2, "accumulate": size}
    whole = run_in_memory(3, lambda t: stage(t, **given)[0])
    half = run_in_memory(3, lambda t: stage(t, until=7, **given)[1])
    rest = run_in_memory(3, lambda t: stage(t, state=half, **given)[0])
    for name, value in whole[0].items():
        assert torch.equal(rest[0][name], value), name


def test_nobody_waits_for_a_correction() -> None:
    """A step takes 1/8 s and a parcel a second: the first stage never waits."""

    def program(transport: Any) -> float:
        net = network()
        with Stages(net, programs.per_example, adam, window=20, transport=transport) as stages:
            stages.module.register_forward_pre_hook(lambda *_: transport.clock.sleep(1 / 8))
            start = transport.clock.now()
            for x, y in data(40 - 4):
                stages.step(x if transport.rank == 0 else None, y)
            return transport.clock.now() - start

    assert run_in_memory(3, program, links=Link(delay_s=1.0))[0] == 36 / 8


def _trained(place: Place, window: int) -> dict[str, Tensor]:
    from synthgrad.engines.stages.transport import distributed

    net = decouple(network().model, ["1"], LateCorrection(LocalLoss(programs.CLASSES)), data(1)[0][0])
    with Stages(
        net, programs.per_example, adam, window=window, transport=distributed(), timeout_s=30
    ) as stages:
        for x, y in data():
            stages.step(x if place.rank == 0 else None, y)
        stages.gather()
    return dict(net.state_dict())


def test_processes_that_run_freely_come_to_the_same_weights(two_processes: Processes) -> None:
    first, last = two_processes.run(_trained, 4)
    assert all(torch.equal(first[name], value) and value.isfinite().all() for name, value in last.items())


@pytest.mark.parametrize(
    ("made", "given", "match"),
    [
        ({}, {"window": None}, r"window=None: corrections hold answers back.*as in window=4"),
        ({}, {"window": 1, "observe_prob": 0.5}, r"observe_prob=0.5: use 1"),
        ({}, {"window": 1, "observe_rows": 0.5}, r"observe_rows=0.5: use 1"),
        ({}, {"window": 1, "clip_norm": 1.0}, r"clip_norm=1.0: leave it out"),
        ({"recompute": True}, {"window": 1}, r"give recompute=False"),
        ({"share": 0.5}, {"window": 1}, r"give share=1"),
    ],
)
def test_what_is_refused(made: dict[str, Any], given: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        run_in_memory(3, lambda t: Stages(network(**made), programs.per_example, adam, transport=t, **given))


def test_a_rule_inside_that_learns_from_messages_is_refused() -> None:
    rule = LateCorrection(SyntheticGradient(context=programs.CLASSES))
    net = decouple(network().model, ["1"], rule, data(1)[0][0])
    with pytest.raises(ConfigError, match="the rule inside learns from messages: take one"):
        run_in_memory(2, lambda t: Stages(net, programs.per_example, adam, window=1, transport=t))

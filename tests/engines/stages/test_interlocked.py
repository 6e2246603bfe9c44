"""Interlocked losses on stages: the bits of one process, and no lag that grows with the number of stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synthgrad import LocalLoss, decouple
from synthgrad.core import ConfigError, Decoupled, Rule
from synthgrad.engines import InProcess, Lag, Stages
from synthgrad.engines.stages.settings import learning_delays
from synthgrad.engines.stages.transport import Link, run_in_memory
from synthgrad.rules import InterlockedLoss, TrueGradient
from tests.engines.stages import programs
from tests.engines.stages.places import Place
from tests.engines.stages.processes import Processes
from tests.engines.stages.stretches import State, stretch

STEPS, WIDTH = 14, 8
CUTS = ("0", "1", "2")


def network(rule: Any = InterlockedLoss, cuts: tuple[str, ...] = CUTS) -> Decoupled:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(programs.INPUTS, WIDTH), nn.Tanh(), nn.Dropout(0.2))]
    layers += [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in cuts[1:]]
    layers += [nn.Sequential(nn.Linear(WIDTH, programs.CLASSES))]
    x = programs.batches(1)[0][0].float()
    made: dict[str, Rule] = {name: rule(programs.CLASSES) for name in cuts}
    return decouple(nn.Sequential(*layers), list(cuts), made, x)


def data() -> list[tuple[Tensor, Tensor]]:
    return [(x.float(), y) for x, y in programs.batches(STEPS)]


def stage(
    transport: Any, state: State | None = None, until: int = STEPS, **given: Any
) -> tuple[dict[str, Tensor], Any]:
    return stretch(transport, network(), programs.fed_back, data()[:until], state, **given)


def in_process(lag: int, rule: Any = InterlockedLoss, **given: Any) -> dict[str, Tensor]:
    net = network(rule)
    lags = {name: Lag(observe=lag) for name in CUTS}
    trainer = InProcess(net, programs.per_example, programs.fed_back, lags=lags, **given)
    torch.manual_seed(5)  # the first module alone draws, as the first stage does
    for x, y in data():
        trainer.step(x, y)
    return net.state_dict()


@pytest.mark.parametrize(("window", "size"), [(0, 1), (1, 1), (3, 1), (2, 2), (2, 3)])
def test_stages_give_the_bits_of_one_process(window: int, size: int) -> None:
    expected = in_process(window, accumulate=size)
    found = run_in_memory(4, lambda t: stage(t, window=window, accumulate=size)[0], links=Link(delay_s=0.25))
    for weights in found:
        for name, value in expected.items():
            assert torch.equal(weights[name], value), name


def test_a_module_learns_from_the_loss_of_the_one_above() -> None:
    local = in_process(0, LocalLoss)
    found = in_process(0)
    assert not torch.equal(local["model.0.0.weight"], found["model.0.0.weight"])


def test_lags_do_not_add_up() -> None:
    assert learning_delays(network(), 2) == [2, 2, 2, 0]
    assert learning_delays(network(lambda _: TrueGradient()), 2) == [6, 4, 2, 0]


@pytest.mark.parametrize("size", [1, 2])
def test_a_run_goes_on_bit_by_bit(size: int) -> None:
    given: dict[str, Any] = {"window": 2, "accumulate": size}
    whole = run_in_memory(4, lambda t: stage(t, **given)[0])
    half = run_in_memory(4, lambda t: stage(t, until=7, **given)[1])
    rest = run_in_memory(4, lambda t: stage(t, state=half, **given)[0])
    for name, value in whole[0].items():
        assert torch.equal(rest[0][name], value), name


def test_a_window_of_one_round_trip_is_enough_for_any_number_of_stages() -> None:
    """A step takes 1/8 s and a parcel 1/2 s: with eleven steps of window nobody waits for gradients."""

    def program(transport: Any) -> float:
        net = network()
        with Stages(net, programs.per_example, programs.fed_back, window=11, transport=transport) as stages:
            stages.module.register_forward_pre_hook(lambda *_: transport.clock.sleep(1 / 8))
            start = transport.clock.now()
            for x, y in data():
                stages.step(x if transport.rank == 0 else None, y)
            return transport.clock.now() - start

    assert run_in_memory(4, program, links=Link(delay_s=0.5))[0] == STEPS / 8


def _trained(place: Place) -> dict[str, Tensor]:
    net = network(cuts=("0",))
    with Stages(net, programs.per_example, programs.fed_back, window=3, timeout_s=30) as stages:
        for x, y in data():
            stages.step(x if place.rank == 0 else None, y)
        stages.gather()
    return dict(net.state_dict())


def test_processes_that_run_freely(two_processes: Processes) -> None:
    first, last = two_processes.run(_trained)
    assert all(torch.equal(first[name], value) and value.isfinite().all() for name, value in last.items())


def test_a_window_must_be_given() -> None:
    with pytest.raises(ConfigError, match="has the module below wait for its message: say how many steps"):
        run_in_memory(4, lambda t: Stages(network(), programs.per_example, programs.fed_back, transport=t))

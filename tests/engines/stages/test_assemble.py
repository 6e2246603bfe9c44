"""What stages have saved, put together: the plain model, one process, another number of stages."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, Decoupled
from synthgrad.engines import InProcess, Stages
from synthgrad.engines.stages import assemble
from synthgrad.rules import TrueGradient
from tests.engines.stages import programs
from tests.engines.stages.places import InMemory, Place

STEPS, SAVED_AFTER = 10, 5


def network(cuts: list[str], rule: sg.Rule) -> Decoupled:
    """Return a network of four blocks, cut at some of them."""
    torch.manual_seed(0)
    blocks: list[nn.Module] = [
        nn.Sequential(nn.Linear(8 if k else 6, 8), nn.BatchNorm1d(8), nn.ReLU()) for k in range(3)
    ]
    model = nn.Sequential(*blocks, nn.Linear(8, programs.CLASSES)).double()
    model[1].register_buffer("mask", torch.ones(8, dtype=torch.float64), persistent=False)  # in no state dict
    return sg.decouple(model, cuts, rule, programs.batches(1)[0][0])


def _train(place: Place, cuts: list[str], make: Any, first: int, last: int, whole: Any = None) -> Any:
    net = network(cuts, make())
    if whole is not None:
        whole.load_into(net)
    with Stages(
        net, F.cross_entropy, programs.adam, window=0, deterministic=True, transport=place.transport
    ) as stages:
        if whole is not None:
            whole.hand_to(stages)
        for x, y in programs.batches(STEPS)[first:last]:
            step = stages.step(x if place.rank == 0 else None, y).step
        file = io.BytesIO()
        torch.save({"net": net.state_dict(), "trainer": stages.state_dict()}, file)
        stages.gather()
    return file.getvalue(), {name: t.clone() for name, t in net.state_dict().items()}, step


def saved(cuts: list[str], make: Any) -> list[dict[str, Any]]:
    found = InMemory(len(cuts) + 1).run(_train, cuts, make, 0, SAVED_AFTER)
    return [torch.load(io.BytesIO(file), weights_only=True) for file, *_ in found]


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor], *, rounded: bool = False) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        # At every cut gradients go to per-example units and back, which rounds; Adam divides by little.
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-8 if rounded else 0, msg=name)


def test_it_is_the_network_that_gather_brings_together() -> None:
    _, expected, _ = InMemory(3).run(
        _train, ["0", "2"], lambda: sg.SyntheticGradient(context=4), 0, SAVED_AFTER
    )[0]
    states = saved(["0", "2"], lambda: sg.SyntheticGradient(context=4))
    whole = assemble(states[::-1])
    assert whole.step == SAVED_AFTER
    same(whole.net, expected)
    net = network(["0", "2"], sg.SyntheticGradient(context=4))
    assert whole.load_into(net) == []
    same(net.state_dict(), expected)


@pytest.mark.parametrize("cuts", [["1"], ["0", "1", "2"]])
def test_with_the_true_gradient_another_number_of_stages_goes_on_as_if_nothing_had_happened(
    cuts: list[str],
) -> None:
    whole = assemble(saved(["0", "2"], TrueGradient))
    found = InMemory(len(cuts) + 1).run(_train, cuts, TrueGradient, SAVED_AFTER, STEPS, whole)
    _, expected, _ = InMemory(3).run(_train, ["0", "2"], TrueGradient, 0, STEPS)[0]
    for _, weights, step in found:
        same(weights, expected, rounded=True)
        assert step == STEPS - 1


def test_one_process_goes_on_too() -> None:
    whole = assemble(saved(["0", "2"], TrueGradient))
    net = network(["1"], TrueGradient())
    whole.load_into(net)
    trainer = InProcess(net, F.cross_entropy, programs.adam)
    whole.hand_to(trainer)
    for x, y in programs.batches(STEPS)[SAVED_AFTER:]:
        assert trainer.step(x, y).step >= SAVED_AFTER
    _, expected, _ = InMemory(3).run(_train, ["0", "2"], TrueGradient, 0, STEPS)[0]
    same(net.state_dict(), expected, rounded=True)


def test_a_rule_at_a_new_cut_begins_anew_and_is_named() -> None:
    whole = assemble(saved(["0", "2"], lambda: sg.SyntheticGradient(context=4)))
    net = network(["1", "2"], sg.SyntheticGradient(context=4))
    assert whole.load_into(net) == ["1"]
    ours = net.state_dict()
    assert torch.equal(ours["model.1.0.weight"], whole.net["model.1.0.weight"])
    known = [name for name in ours if name.startswith("rules.2.")]
    assert known
    assert all(torch.equal(ours[name], whole.net[name]) for name in known)


def test_what_does_not_belong_together_is_refused() -> None:
    states = saved(["0", "2"], TrueGradient)
    with pytest.raises(ConfigError, match=r"stages \[0, 2\] of a run with 3"):
        assemble([states[0], states[2]])
    with pytest.raises(ConfigError, match="two states of stage 1"):
        assemble([states[0], states[1], states[1]])
    states[1]["trainer"]["step"] = 4
    with pytest.raises(ConfigError, match="after different steps, 0: 5, 1: 4, 2: 5"):
        assemble(states)
    with pytest.raises(ConfigError, match="no states"):
        assemble([])


def test_another_model_is_refused() -> None:
    whole = assemble(saved(["0", "2"], TrueGradient))
    wider = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)).double()
    net = sg.decouple(wider, ["1"], TrueGradient(), programs.batches(1)[0][0])
    with pytest.raises(ConfigError, match="the run has nothing for 'model.0.weight'.*this is another model"):
        whole.load_into(net)

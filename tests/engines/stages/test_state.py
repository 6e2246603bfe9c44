"""Stages can be saved between any two steps, with every message under way, and go on bit by bit."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from synthgrad import SyntheticGradient, decouple
from synthgrad.engines import Stages
from synthgrad.engines.codecs import blocks, top_k
from synthgrad.engines.stages.transport import Link
from synthgrad.rules import SyntheticInput
from tests.engines.stages import programs
from tests.engines.stages.places import InMemory, Place

STEPS, SAVED_AFTER = 14, 6

#: Half a round trip as long as three steps: so messages are under way when the state is saved.
SLOW = Link(delay_s=0.15)
STEP_S = 0.05


def network(world: int, rule: str, *, inputs: bool, kind: str = "dense") -> Any:
    net = programs.network(world, rule, kind)
    if not inputs:
        return net
    plain, cuts = net.model, [str(k) for k in range(world - 1)]
    torch.manual_seed(5)
    x = programs.batches(1)[0][0]
    return decouple(plain, cuts, SyntheticGradient(context=programs.CLASSES), x, inputs=SyntheticInput())


def engine(place: Place, net: Any, options: dict[str, Any]) -> Stages:
    options = {key: value for key, value in options.items() if key != "kind"}
    made = Stages(net, programs.per_example, programs.adam, transport=place.transport, **options)
    made.module.register_forward_pre_hook(lambda *_: place.sleep(STEP_S))
    return made


def steps(place: Place, stages: Stages, first: int, last: int, *, inputs: bool) -> list[Any]:
    losses = []
    for x, y in programs.batches(STEPS)[first:last]:
        record = stages.step(x if place.rank == 0 or inputs else None, y)
        losses.append(None if record.loss is None else float(record.loss))
    return losses


def own_weights(net: Any, stages: Stages) -> dict[str, Tensor]:
    stages.gather()
    return {name: t.clone() for name, t in net.state_dict().items()}


def _through(place: Place, world: int, rule: str, options: dict[str, Any], inputs: bool, saves: bool) -> Any:
    """Train without a break; saving in between must disturb nothing."""
    net = network(world, rule, inputs=inputs, kind=options.get("kind", "dense"))
    with engine(place, net, options) as stages:
        steps(place, stages, 0, SAVED_AFTER, inputs=inputs)
        if saves:
            stages.state_dict()
        losses = steps(place, stages, SAVED_AFTER, STEPS, inputs=inputs)
        return losses, own_weights(net, stages)


def _until_saved(place: Place, world: int, rule: str, options: dict[str, Any], inputs: bool) -> bytes:
    net = network(world, rule, inputs=inputs, kind=options.get("kind", "dense"))
    with engine(place, net, options) as stages:
        steps(place, stages, 0, SAVED_AFTER, inputs=inputs)
        file = io.BytesIO()
        torch.save({"net": net.state_dict(), "trainer": stages.state_dict()}, file)
        return file.getvalue()


def _resumed(
    place: Place, world: int, rule: str, options: dict[str, Any], inputs: bool, files: list[bytes]
) -> Any:
    net = network(world, rule, inputs=inputs, kind=options.get("kind", "dense"))
    saved = torch.load(io.BytesIO(files[place.rank]), weights_only=True)
    net.load_state_dict(saved["net"])
    with engine(place, net, options) as stages:
        stages.load_state_dict(saved["trainer"])
        losses = steps(place, stages, SAVED_AFTER, STEPS, inputs=inputs)
        return losses, own_weights(net, stages)


CASES = {
    "synthetic gradients": (2, "cdni", {"window": 3, "deterministic": True}, False),
    "three stages": (3, "cdni", {"window": 2, "deterministic": True}, False),
    "without context": (2, "dni", {"window": 0, "deterministic": True}, False),
    "losses travel": (2, "sobolev", {"window": 2, "deterministic": True}, False),
    "a few messages": (3, "cdni", {"window": 2, "deterministic": True, "observe_prob": 0.5}, False),
    "recurrent": (2, "true", {"window": 2, "deterministic": True, "kind": "recurrent"}, False),
    "a narrow wire": (2, "cdni", {"window": 2, "deterministic": True, "wire_dtype": torch.bfloat16}, False),
    "codecs, of which one keeps what it has not sent": (
        3,
        "cdni",
        {"window": 2, "deterministic": True, "codec": blocks(8), "message_codec": top_k(0.25)},
        False,
    ),
    "no rule that learns": (2, "local_loss", {"window": 2, "deterministic": True}, False),
    "backpropagation": (3, "true", {"window": 0, "deterministic": True}, False),
    "delayed gradients": (2, "true", {"window": 2, "deterministic": True}, False),
    "delayed gradients, three stages": (3, "true", {"window": 1, "deterministic": True}, False),
    "in the middle of an update": (2, "cdni", {"window": 2, "deterministic": True, "accumulate": 4}, False),
    "late, in the middle of an update": (
        3,
        "true",
        {"window": 1, "deterministic": True, "accumulate": 4},
        False,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_saved_goes_on_bit_by_bit(case: str) -> None:
    world, rule, options, inputs = CASES[case]
    ranks = InMemory(world, SLOW)
    expected = ranks.run(_through, world, rule, options, inputs, False)
    files = ranks.run(_until_saved, world, rule, options, inputs)
    found = ranks.run(_resumed, world, rule, options, inputs, files)
    for (losses, weights), (their_losses, theirs) in zip(found, expected, strict=True):
        assert losses == their_losses
        for name, value in theirs.items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("inputs", [False, True])
def test_saving_disturbs_nothing(*, inputs: bool) -> None:
    options = {"window": 3} if inputs else {"window": 3, "deterministic": True}
    ranks = InMemory(2, SLOW)
    with_it, without = (ranks.run(_through, 2, "cdni", options, inputs, saves) for saves in (True, False))
    for (losses, weights), (their_losses, theirs) in zip(with_it, without, strict=True):
        if not inputs:  # a stage that waits for the mark is later, so it has more of what comes from below
            assert losses == their_losses
            for name, value in theirs.items():
                torch.testing.assert_close(weights[name], value, rtol=0, atol=0, msg=name)
        assert all(torch.isfinite(t).all() for t in weights.values())


def test_synthetic_inputs_whose_real_ones_are_still_to_come_are_saved() -> None:
    ranks, options = InMemory(2, SLOW), {"window": 3}
    files = ranks.run(_until_saved, 2, "cdni", options, True)
    late = torch.load(io.BytesIO(files[1]), weights_only=True)["trainer"]["module"]["late"]
    assert late["num_synthetic"] > 0
    assert late["missing"]
    losses, _ = ranks.run(_resumed, 2, "cdni", options, True, files)[1]
    assert len(losses) == STEPS - SAVED_AFTER


def test_messages_were_under_way_when_the_state_was_saved() -> None:
    files = InMemory(2, SLOW).run(_until_saved, 2, "cdni", {"window": 3, "deterministic": True}, False)
    state = torch.load(io.BytesIO(files[0]), weights_only=True)["trainer"]
    assert len(state["links"]["above"]["parcels"]) == 3
    assert [flight["entered"] for flight in state["module"]["flights"]] == [3, 4, 5]


def _swapped(place: Place, files: list[bytes]) -> None:
    with engine(place, network(3, "cdni", inputs=False), {"window": 2, "deterministic": True}) as stages:
        stages.load_state_dict(
            torch.load(io.BytesIO(files[(place.rank + 1) % 3]), weights_only=True)["trainer"]
        )


def test_the_state_of_another_stage_is_refused() -> None:
    options = {"window": 2, "deterministic": True}
    files = InMemory(3).run(_until_saved, 3, "cdni", options, False)
    found = InMemory(3).outcomes(_swapped, files)
    assert "stage 0 of 3 was given the state of stage 1 of 3" in (found[0].error or "")

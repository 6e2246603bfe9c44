"""One process runs all stages as threads that take turns, and gives the bits of a process for each of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synthgrad import LocalLoss, SyntheticGradient, decouple
from synthgrad.engines import Stages
from synthgrad.engines.stages.codecs import blocks, subspace, top_k
from synthgrad.rules import TrueGradient
from tests.engines.stages import programs
from tests.engines.stages.places import InMemory, Place
from tests.engines.stages.processes import Processes

RULES: dict[str, Any] = {
    "cdni": lambda: SyntheticGradient(context=programs.CLASSES),
    "local_loss": lambda: LocalLoss(programs.CLASSES),
    "true": TrueGradient,
}
CODECS: dict[str, dict[str, Any]] = {
    "8 bits": {"codec": blocks(8)},
    "subspace and the largest": {"codec": subspace(6, inner=blocks(8)), "message_codec": top_k(0.25)},
}


def trained(place: Place, rule: str, codecs: str) -> dict[str, Tensor]:
    """Train a network with dropout, with codecs and updates of several steps, as one of two stages."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(programs.INPUTS, 8), nn.ReLU(), nn.Dropout(0.25))
    model = nn.Sequential(first, nn.Sequential(nn.Dropout(0.1), nn.Linear(8, programs.CLASSES)))
    data = [(x.float(), y) for x, y in programs.batches(14)]
    net = decouple(model, ["0"], RULES[rule](), data[0][0])
    how: dict[str, Any] = {"window": 2, "deterministic": True, "accumulate": 3, "clip_norm": 1.0}
    with Stages(
        net, programs.per_example, programs.fed_back, transport=place.transport, **how, **CODECS[codecs]
    ) as stages:
        for x, y in data:
            stages.step(x if place.rank == 0 else None, y)
        stages.gather()
    return programs.weights(net)


@pytest.mark.parametrize("codecs", CODECS)
@pytest.mark.parametrize("rule", RULES)
def test_threads_give_the_bits_of_processes(
    two: InMemory, two_processes: Processes, rule: str, codecs: str
) -> None:
    (twin, _), (found, _) = two.run(trained, rule, codecs), two_processes.run(trained, rule, codecs)
    for name, value in twin.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)
    torch.manual_seed(0)
    start = nn.Linear(programs.INPUTS, 8).weight
    assert not torch.equal(twin["model.0.0.weight"], start)

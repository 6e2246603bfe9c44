"""What takes a plan: `decouple` its cuts, and stages its window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, CutError
from synthgrad.engines.stages import Stages, run_in_memory
from tests.networks import CASES, CLASSES

CASE = CASES["batchnorm"]


@dataclass(frozen=True)
class Planned:
    cuts: Sequence[str] = ("0", "2")
    window: Any = 3


def net_of(at: Any) -> sg.core.Decoupled:
    return sg.decouple(CASE.model(), at, sg.SyntheticGradient(context=CLASSES), CASE.batch()[0])


def test_the_cuts_of_a_plan_are_made() -> None:
    net = net_of(Planned())
    assert list(net.interfaces) == ["0", "2"]
    assert net.state_dict().keys() == net_of(["0", "2"]).state_dict().keys()


@pytest.mark.parametrize(
    ("cuts", "says"),
    [
        (["layer9"], "cannot cut after 'layer9': the model has no submodule of that name"),
        ("02", "at='02': expected a list of names"),
        (2, "at=2: expected a list of names"),
        ([], "no cut was given"),
    ],
)
def test_a_plan_for_another_model_is_refused(cuts: Any, says: str) -> None:
    with pytest.raises(CutError, match=says):
        net_of(Planned(cuts))


def stages(transport: Any, window: Any) -> int:
    with Stages(
        net_of(["0"]), F.cross_entropy, lambda p: torch.optim.SGD(p, 0.1), window=window, transport=transport
    ) as trainer:
        return trainer.window


@pytest.mark.parametrize(("window", "found"), [(3, [3, 3]), (0, [0, 0]), (None, [2, 2])])
def test_the_window_of_a_plan_is_the_window_of_stages(window: int | None, found: list[int]) -> None:
    assert run_in_memory(2, stages, Planned(window=window)) == run_in_memory(2, stages, window) == found


@pytest.mark.parametrize(
    ("window", "says"),
    [
        (
            Planned(window=2.5),
            "the plan's window=2.5: expected a number of steps from 0, a plan that has one, or None",
        ),
        (Planned(window=True), "the plan's window=True: expected"),
        (Planned(window=-1), "window=-1: expected a number of steps from 0"),
        ("3", "^window='3': expected a number of steps from 0"),
        (2.0, "^window=2.0: expected a number of steps from 0"),
    ],
)
def test_a_window_that_is_none_is_refused(window: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run_in_memory(2, stages, window)

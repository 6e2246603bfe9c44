"""What a rule is told of the batch that crosses its interface, in a plain and in a compiled network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import synthgrad as sg
from synthgrad.core import Credit, Info, Rule
from tests.networks import CASES


class TellsTheStep(Rule):
    """Credits with the number of the step, or with -1 where there is none."""

    listens = False

    def credit(self, h: Tensor, info: Info) -> Credit:
        return Credit(torch.full_like(h, -1.0 if info.step is None else float(info.step)))


def gradient(net: torch.nn.Module, step: int | None) -> Tensor:
    """Return the gradient of the first layer's bias, which is proportional to the credit."""
    case = CASES["linear"]
    x, y = case.batch()
    net.zero_grad()
    with sg.context(y, step=step):
        case.criterion(net(x), y).backward()
    (found,) = (p.grad for n, p in net.named_parameters() if n.endswith("model.0.bias"))
    assert found is not None
    return found.clone()


def test_a_plain_loop_says_which_step_it_is_if_it_is_told() -> None:
    case = CASES["linear"]
    net = sg.decouple(case.model(), case.at, TellsTheStep(), case.batch()[0])
    one, three = gradient(net, 1), gradient(net, 3)
    torch.testing.assert_close(three, 3 * one)
    torch.testing.assert_close(gradient(net, None), -one)


# Dynamo makes an instance of the autograd function to trace it, which torch itself deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_network_that_is_compiled_as_a_whole_is_not_told_the_step() -> None:
    case = CASES["linear"]
    net = sg.decouple(case.model(), case.at, TellsTheStep(), case.batch()[0])
    without = gradient(net, None)
    assert without.abs().max() > 0
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for step in (3, 4):
        torch.testing.assert_close(gradient(compiled, step), without)

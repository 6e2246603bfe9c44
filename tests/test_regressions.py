"""Mistakes that were made once, each with its story."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.engines import InProcess, Locked
from tests.networks import CASES, CLASSES


def test_the_clone_that_feeds_two_heads_is_not_a_skip_connection() -> None:
    """The trace hands on a clone of a leaf; two heads share the clone's node of the graph.

    It was once taken for a tensor that both heads make use of from below the cut, and a network with two
    heads was refused.
    """
    case = CASES["two_headed"]
    graph = sg.decouple(case.model(), case.at, sg.NoBackprop(), case.batch()[0]).graph
    assert [m.name for m in graph.modules] == ["trunk", "inner", "output"]


def test_rules_take_the_dtype_of_the_model() -> None:
    """A rule was built in float32 whatever the model was, and a float64 model failed at its first credit."""
    case = CASES["linear"]
    net = sg.decouple(case.model(), case.at, sg.SyntheticGradient((4,), CLASSES), case.batch()[0])
    assert {p.dtype for p in net.parameters()} == {torch.float64}


def test_a_module_that_gets_no_credit_does_not_count_as_updated() -> None:
    """Optimizers stepped on nothing were counted: no-bprop was said to skip no updates."""
    case = CASES["linear"]
    net = sg.decouple(case.model(), case.at, sg.NoBackprop(), case.batch()[0])

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, 0.1)

    assert InProcess(net, F.cross_entropy, sgd).step(*case.batch()).updated == ["output"]


def test_a_look_up_out_of_range_is_told_by_the_interface() -> None:
    """The range of labels was checked at every interface and step, which cost more than the look-up.

    Now the look-up fails by itself; its bare IndexError must still become a sentence.
    """
    net = sg.decouple(
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        ["0"],
        sg.SyntheticGradient(context=2),
        torch.ones(3, 2),
    )
    x, y = torch.ones(3, 2), torch.tensor([0, 1, 2])
    with pytest.raises(sg.core.ContextError, match="interface '0': got class index 2, expected 0 to 1"):
        net(x, context=y)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function:DeprecationWarning")
def test_a_compiled_network_is_not_compiled_anew_at_every_step() -> None:
    """The number of the step, which engines tell the rules, was a constant to the compiler.

    Every step was compiled again, until the compiler's limit ended training.
    """
    case = CASES["linear"]
    net = sg.decouple(case.model(), case.at, sg.SyntheticGradient((), CLASSES), case.batch()[0])
    compilations: list[object] = []

    def count(graph: Any, inputs: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    net.compile(backend=count)
    trainer = Locked(net, F.cross_entropy, lambda parameters: torch.optim.SGD(parameters, 0.1))
    for _ in range(3):
        trainer.step(*case.batch())
    assert len(compilations) == 1

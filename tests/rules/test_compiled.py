"""The plain loop as one graph: the gradients are those of the network that is not compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import Rule
from synthgrad.rules import HeadGradient, LeastSquaresGradient, heads

# The compiler uses what torch deprecates, and looks at what torch warns of.
pytestmark = [
    pytest.mark.compiles,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

CLASSES = 3
LABELS = torch.tensor([0, 1, 2, 2, -100, 0])


def batch(seed: int = 0) -> Tensor:
    return torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SOFT = batch(1)[:, :CLASSES].softmax(1)
NUMBERS = batch(2)[:, :CLASSES] * 3
CASES: dict[str, tuple[Callable[[], Rule], Tensor, Any]] = {
    "dni": (lambda: sg.SyntheticGradient((4,), context=CLASSES), LABELS, F.cross_entropy),
    "cdni": (lambda: sg.SyntheticGradient(context=CLASSES), LABELS, F.cross_entropy),
    "cdni, soft": (lambda: sg.SyntheticGradient(context=CLASSES), SOFT, F.cross_entropy),
    "local loss": (lambda: sg.LocalLoss(CLASSES), SOFT, F.cross_entropy),
    "local loss, BatchNorm": (
        lambda: sg.LocalLoss(CLASSES, heads.linear_head((4,))),
        LABELS,
        F.cross_entropy,
    ),
    "local loss, own": (lambda: sg.LocalLoss(CLASSES, loss=F.mse_loss), NUMBERS, F.mse_loss),
    "critic": (lambda: sg.Sobolev(CLASSES, (4,)), LABELS, F.cross_entropy),
    "critic of the value": (lambda: sg.Sobolev(CLASSES, critic="value"), LABELS, F.cross_entropy),
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def network(rule: Rule) -> sg.core.Decoupled:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()
    net = sg.decouple(model, ["1"], rule, batch())
    for p in net.rules.parameters():
        nn.init.normal_(p, std=0.3)
    return net


@pytest.mark.parametrize("case", CASES)
def test_one_graph_has_the_same_gradients_and_buffers(case: str) -> None:
    make, target, criterion = CASES[case]
    net = network(make())
    twin = copy.deepcopy(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    for x in (batch(3), batch(4)):
        for run in (compiled, twin):
            criterion(run(x, context=target), target).backward()  # adds up over the batches
    theirs = dict(twin.named_parameters())
    for name, p in net.named_parameters():
        expected = theirs[name].grad
        assert p.grad is not None, name
        assert expected is not None, name
        torch.testing.assert_close(p.grad, expected, rtol=1e-10, atol=1e-12, msg=name)
    assert net.model[0].weight.grad.abs().max() > 1e-4  # type: ignore[index,union-attr,operator]
    for name, value in net.named_buffers():
        torch.testing.assert_close(value, dict(twin.named_buffers())[name], msg=name)


def test_a_graph_stops_at_a_target_that_is_no_distribution() -> None:
    compiled = torch.compile(network(sg.LocalLoss(CLASSES)), fullgraph=True, backend="aot_eager")
    compiled(batch(), context=SOFT)
    with pytest.raises(RuntimeError, match="interface '1': got a target whose rows are no distribution"):
        compiled(batch(), context=SOFT * 2)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (sg.HandOver(sg.SyntheticGradient(context=CLASSES), warm_up=2), "HandOver decides in every step"),
        (LeastSquaresGradient(CLASSES), "least squares with a context ask in every step"),
        (HeadGradient(CLASSES), "HeadGradient solves in some steps"),
    ],
    ids=["hand over", "least squares", "head gradient"],
)
def test_rules_that_no_graph_can_hold_say_so_and_what_to_do(rule: Rule, said: str) -> None:
    compiled = torch.compile(network(rule), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=f"interface '1': {said}.*leave out fullgraph=True"):
        compiled(batch(), context=LABELS)


def test_a_hand_over_runs_beside_a_graph_that_may_break() -> None:
    nets = [network(sg.HandOver(sg.SyntheticGradient(context=CLASSES), warm_up=2)) for _ in range(2)]
    compiled = torch.compile(nets[0], backend="aot_eager")
    optimizers = [torch.optim.SGD(net.parameters(), 0.1) for net in nets]
    for k in range(4):
        for run, optimizer in zip((compiled, nets[1]), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(run(batch(k), context=LABELS), LABELS).backward()
            optimizer.step()
    for name, value in nets[0].state_dict().items():
        torch.testing.assert_close(value, nets[1].state_dict()[name], msg=name)
    assert nets[0].interfaces["1"].rule.batches == 4  # type: ignore[union-attr]

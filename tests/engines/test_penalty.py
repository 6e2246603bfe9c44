"""Terms of the loss that are no function of the output: refused in the criterion, exact as penalties."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, CutError, Decoupled
from synthgrad.core.copies import copied
from synthgrad.engines import InProcess, Lag, LayerParallel, Locked

X, Y = torch.randn(16, 6, dtype=torch.float64), torch.randint(0, 3, (16,))


class Gated(nn.Module):
    """Leaves a balancing loss in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 4), nn.Linear(6, 32)
        self.balance = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        gates = self.gate(x).softmax(-1)
        self.balance = gates.mean(0).square().sum() * 4
        return (self.experts(x).view(len(x), 4, 8) * gates[..., None]).sum(1)


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Gated(), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def decay(own: Any) -> Tensor:
    return 0.5 * torch.stack([p.square().sum() for p in own]).sum()


def balanced(net: Decoupled) -> dict[str, Callable[[Any], Tensor]]:
    return {"1": lambda own: decay(own) + 0.3 * net.model[0].balance}  # type: ignore[index,union-attr,operator]


def backprop(total: Callable[[nn.Module], Tensor], steps: int = 4) -> nn.Module:
    model = model_of()
    optimizer = sgd(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        (F.cross_entropy(model(X), Y) + total(model)).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("engine", [InProcess, Locked])
@pytest.mark.parametrize("kind", ["weights", "balance"])
def test_with_true_gradients_it_is_the_gradient_of_the_sum(engine: Any, kind: str) -> None:
    net = sg.decouple(model_of(), ["1", "3"], sg.TrueGradient(), X)
    if kind == "weights":
        penalty: Any = decay
        expected = backprop(lambda m: decay(m.parameters()))
    else:
        penalty = balanced(net)
        expected = backprop(lambda m: decay(m[0].parameters()) + 0.3 * m[0].balance)  # type: ignore[index]
    trainer = engine(net, F.cross_entropy, sgd, penalty=penalty)
    for _ in range(4):
        trainer.step(X, Y)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(net.model.state_dict()[name], value, msg=name)


def test_it_is_evaluated_at_the_weights_of_the_graph_where_messages_lag() -> None:
    """A module that waits three steps learns from the balance of the batch that it has waited for."""
    net = sg.decouple(model_of(), ["1"], sg.TrueGradient(), X)
    trainer = InProcess(
        net,
        F.cross_entropy,
        sgd,
        penalty={"1": lambda own: 0.3 * net.model[0].balance},  # type: ignore[index,union-attr,operator]
        lags={"1": Lag(observe=2)},
    )
    model = model_of()
    low, top = sgd(model[:2].parameters()), sgd(model[2:].parameters())
    kept: list[tuple[nn.Module, Tensor, Tensor]] = []
    for step in range(5):
        x, y = X[step : step + 8], Y[step : step + 8]
        trainer.step(x, y)
        then = copied(model)
        h = model[:2](x).detach().requires_grad_()
        top.zero_grad()
        F.cross_entropy(model[2:](h), y).backward()
        top.step()
        assert h.grad is not None
        kept.append((then, x, h.grad))
        if len(kept) > 2:
            old, old_x, grad = kept.pop(0)
            out = old[:2](old_x)  # type: ignore[index,operator]
            torch.autograd.backward([out, 0.3 * old[0].balance], [grad, torch.ones((), dtype=grad.dtype)])  # type: ignore[index,union-attr,operator,list-item]
            for p, q in zip(model[:2].parameters(), old[:2].parameters(), strict=True):  # type: ignore[index,union-attr]
                p.grad = q.grad
            low.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(net.model.state_dict()[name], value, msg=name)


@pytest.mark.parametrize("rule", [sg.SyntheticGradient(context=3), sg.NoBackprop()], ids=["cdni", "no_bprop"])
def test_with_any_rule_each_module_has_its_own_term_in_its_own_step(rule: sg.Rule) -> None:
    """One step of SGD: the difference that a penalty makes to the weights is its gradient."""
    nets = [sg.decouple(model_of(), ["1", "3"], rule, X) for _ in range(2)]
    before = copy.deepcopy(nets[0].model)
    InProcess(nets[0], F.cross_entropy, sgd).step(X, Y)
    InProcess(nets[1], F.cross_entropy, sgd, penalty=decay).step(X, Y)
    for name, p in before.named_parameters():
        a, b = (dict(net.model.named_parameters())[name] for net in nets)
        torch.testing.assert_close(a - b, 0.1 * p, msg=name)


def test_layer_parallel_adds_the_same() -> None:
    def net() -> Decoupled:
        torch.manual_seed(0)
        blocks = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)]
        model = nn.Sequential(*blocks, nn.Linear(6, 3)).double()
        return sg.decouple(model, ["0", "1", "2"], sg.SyntheticGradient(context=3), X)

    ours = LayerParallel(net(), F.cross_entropy, sgd, penalty=decay)
    theirs = InProcess(net(), F.cross_entropy, sgd, penalty=decay, lags=ours.lags)
    for _ in range(8):
        ours.step(X, Y)
        theirs.step(X, Y)
    for name, value in theirs.net.state_dict().items():
        torch.testing.assert_close(ours.net.state_dict()[name], value, msg=name)
    with pytest.raises(ConfigError, match="leave out compile"):
        LayerParallel(net(), F.cross_entropy, sgd, penalty=decay, compile=True)
    left = {"1": lambda own: torch.zeros(())}
    with pytest.raises(ConfigError, match="module '1' does not depend on parameters"):
        LayerParallel(net(), F.cross_entropy, sgd, penalty=left)


@pytest.mark.parametrize(
    "rule",
    [sg.TrueGradient(), sg.SyntheticGradient(context=3), sg.NoBackprop()],
    ids=lambda r: type(r).__name__,
)
@pytest.mark.parametrize("kind", ["weights", "balance", "rules"])
def test_a_criterion_with_such_a_term_is_refused_before_anything_learns(rule: sg.Rule, kind: str) -> None:
    net = sg.decouple(model_of(), ["1", "3"], rule, X)
    terms: dict[str, Callable[[], Any]] = {
        "weights": lambda: decay(net.model.parameters()),
        "balance": lambda: net.model[0].balance,  # type: ignore[index,union-attr]
        "rules": lambda: sum(p.square().sum() for p in net.rules.parameters()),
    }
    if kind == "rules" and not list(net.rules.parameters()):
        return
    trainer = InProcess(net, lambda o, y: F.cross_entropy(o, y) + terms[kind](), sgd)
    with pytest.raises(
        CutError, match=r"a gradient reached parameter '.*' of module '.*' by another way"
    ) as caught:
        trainer.step(X, Y)
    assert "penalty=" in str(caught.value)
    assert all(p.grad is None for p in net.parameters())


def test_a_term_that_begins_later_is_refused_when_it_does() -> None:
    net = sg.decouple(model_of(), ["1"], sg.SyntheticGradient(context=3), X)
    weight = [0.0]

    def criterion(o: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(o, y)
        return loss + weight[0] * decay(net.model.parameters()) if weight[0] else loss

    trainer = InProcess(net, criterion, sgd)
    trainer.step(X, Y)
    weight[0] = 0.1
    with pytest.raises(CutError, match="by another way than through the cuts"):
        trainer.step(X, Y)


def test_a_term_of_the_last_module_is_a_function_that_it_may_have() -> None:
    net = sg.decouple(model_of(), ["1", "3"], sg.TrueGradient(), X)
    trainer = InProcess(net, lambda o, y: F.cross_entropy(o, y) + decay(net.model[4].parameters()), sgd)  # type: ignore[index,union-attr]
    expected = backprop(lambda m: decay(m[4].parameters()), 1)  # type: ignore[index]
    trainer.step(X, Y)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(net.model.state_dict()[name], value, msg=name)


@pytest.mark.parametrize(
    ("penalty", "match"),
    [
        ({"nowhere": decay}, r"penalty names the module 'nowhere', expected some of \['1', '3', 'output'\]"),
        ({"1": 3.0}, "expected a function of a module's parameters"),
        (0.1, "expected a function of a module's parameters"),
    ],
)
def test_penalties_that_cannot_be(penalty: Any, match: str) -> None:
    net = sg.decouple(model_of(), ["1", "3"], sg.TrueGradient(), X)
    with pytest.raises(ConfigError, match=match):
        InProcess(net, F.cross_entropy, sgd, penalty=penalty)


def test_a_penalty_of_another_modules_weights_is_refused() -> None:
    net = sg.decouple(model_of(), ["1", "3"], sg.TrueGradient(), X)
    trainer = InProcess(net, F.cross_entropy, sgd, penalty=lambda own: decay(net.model.parameters()))
    with pytest.raises(ConfigError, match=r"penalty of module '1' depends on parameter 'model\.[24]\.\w+'"):
        trainer.step(X, Y)
    trainer = InProcess(net, F.cross_entropy, sgd, penalty=lambda own: next(iter(own)).square().sum(1))
    with pytest.raises(ConfigError, match=r"has shape \(4,\), expected a scalar"):
        trainer.step(X, Y)


def test_gradients_that_something_else_has_left_are_dropped() -> None:
    """A plain loop that warmed the network up and did not clear its last gradients, say."""
    # Means of classes are no gradients: they move when messages come.
    rule = sg.SyntheticGradient(context=3, learned_table=True)
    nets = [sg.decouple(model_of(), ["1", "3"], rule, X) for _ in range(2)]
    F.cross_entropy(nets[0](X, context=Y), Y).backward()
    for net in nets:
        InProcess(net, F.cross_entropy, sgd).step(X, Y)
    for name, value in nets[1].state_dict().items():
        assert torch.equal(nets[0].state_dict()[name], value), name

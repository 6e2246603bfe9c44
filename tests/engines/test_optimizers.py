"""Optimizer factories: what they are given, what they may return, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, Decoupled
from synthgrad.engines import InProcess, Locked, Parameters

X, Y = torch.randn(16, 6), torch.randint(0, 3, (16,))


def net_of(rule: sg.Rule | None = None) -> Decoupled:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return sg.decouple(model, ["1"], rule or sg.SyntheticGradient(context=3), X)


def decayed(parameters: Any) -> torch.optim.Optimizer:
    """Weight decay for matrices only, by shape: the commonest factory of all."""
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-2,
    )


def by_name(parameters: Parameters) -> torch.optim.Optimizer:
    named = list(parameters.named_parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for n, p in named if not n.endswith("bias")]},
            {"params": [p for n, p in named if n.endswith("bias")], "weight_decay": 0.0},
        ],
        lr=1e-2,
    )


def test_a_factory_reads_shapes_or_names_also_where_rules_have_options() -> None:
    for factory in (decayed, by_name):
        trainer = InProcess(net_of(), F.cross_entropy, factory, rule_options={"lr": 5e-2})
        lower, upper = trainer.optimizers
        assert [g["lr"] for g in lower.param_groups] == [1e-2, 1e-2]
        rule = {id(p) for p in trainer.net.rules.parameters()}
        of = {id(p): g for g in upper.param_groups for p in g["params"]}
        assert {g["lr"] for i, g in of.items() if i in rule} == {5e-2}
        assert {g["lr"] for i, g in of.items() if i not in rule} == {1e-2}
        assert of[id(trainer.net.model[2].bias)]["weight_decay"] == 0.0  # type: ignore[index,union-attr]
        trainer.step(X, Y)


def test_it_is_called_once_a_module_from_the_bottom_up_with_names() -> None:
    told: list[tuple[str, list[str]]] = []

    def factory(parameters: Parameters) -> torch.optim.Optimizer:
        told.append((parameters.module, [n for n, _ in parameters.named_parameters()]))
        assert [id(p) for p in parameters] == [id(p) for p in parameters.parameters()]
        return torch.optim.SGD(parameters, 0.1)

    InProcess(net_of(), F.cross_entropy, factory, rule_options={"lr": 0.2})
    assert told == [
        ("1", ["0.weight", "0.bias"]),
        ("output", ["2.weight", "2.bias", "rules.1.model.weight"]),
    ]


def two(parameters: Any) -> list[torch.optim.Optimizer | None]:
    """One for matrices, one for the rest; None where there are none of a kind."""
    matrices, rest = [p for p in parameters if p.ndim == 2], [p for p in parameters if p.ndim != 2]
    return [
        torch.optim.SGD(matrices, 0.1, momentum=0.9) if matrices else None,
        torch.optim.SGD(rest, 0.01) if rest else None,
    ]


def test_several_optimizers_train_as_they_would_in_a_plain_loop() -> None:
    net = net_of(sg.TrueGradient())
    plain = sg.recouple(net)
    trainer = InProcess(net, F.cross_entropy, two)
    assert len(trainer.optimizers) == 4
    made = [o for o in two(list(plain.parameters())) if o is not None]
    for _ in range(3):
        trainer.step(X, Y)
        for optimizer in made:
            optimizer.zero_grad()
        F.cross_entropy(plain(X), Y).backward()
        for optimizer in made:
            optimizer.step()
    for name, value in plain.state_dict().items():
        assert torch.equal(net.model.state_dict()[name], value), name
    state = trainer.state_dict()
    again = InProcess(net_of(sg.TrueGradient()), F.cross_entropy, two)
    again.load_state_dict(state)
    momentum = [o.state_dict()["state"][0]["momentum_buffer"] for o in again.optimizers[::2]]
    assert all(m.abs().max() > 0 for m in momentum)


def left_out(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in parameters if p.ndim > 1], 0.1)


def everything(net: Decoupled) -> Any:
    return lambda _: torch.optim.SGD(net.parameters(), 0.1)


@pytest.mark.parametrize(
    ("factory", "match"),
    [
        (torch.optim.LBFGS, "LBFGS needs a closure"),
        (left_out, r"left out '0\.bias' of module '1', which would never learn"),
        (lambda p: [torch.optim.SGD(p, 0.1), torch.optim.SGD(p, 0.1)], "is in two optimizers of module '1'"),
        (
            lambda p: [torch.optim.SGD([q for q in p if q.ndim > 4], 0.1)],
            "failed for module '1'.*empty parameter list",
        ),
        (lambda p: "adam", "returned a str, expected a torch.optim.Optimizer"),
        (lambda p: None, "returned a NoneType"),
        (lambda p: p.no_such_thing, "failed for module '1' .*AttributeError"),
    ],
)
def test_factories_that_cannot_be(factory: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        InProcess(net_of(), F.cross_entropy, factory)
    assert "\n" not in str(caught.value)


def test_an_optimizer_of_the_whole_network_is_refused() -> None:
    net = net_of()
    with pytest.raises(ConfigError, match="that the factory was not given"):
        InProcess(net, F.cross_entropy, everything(net))


def test_a_parameter_that_thaws_is_refused_unless_the_engine_knows_it() -> None:
    for engine in (InProcess, Locked):
        net = net_of(sg.TrueGradient())
        net.model[0].requires_grad_(False)  # type: ignore[index,union-attr]
        trainer = engine(net, F.cross_entropy, lambda p: torch.optim.SGD(p, 0.1))
        trainer.step(X, Y)
        net.model[0].requires_grad_(True)  # type: ignore[index,union-attr]
        with pytest.raises(
            ConfigError, match=r"parameter '(model\.)?0\.weight' has a gradient, and is in no optimizer"
        ):
            trainer.step(X, Y)


def test_gradual_unfreezing_of_what_the_engine_knows() -> None:
    net = net_of(sg.TrueGradient())
    trainer = InProcess(net, F.cross_entropy, lambda p: torch.optim.SGD(p, 0.1))
    before: Tensor = net.model[0].weight.detach().clone()  # type: ignore[index,union-attr,operator]
    net.model[0].requires_grad_(False)  # type: ignore[index,union-attr]
    trainer.step(X, Y)
    assert torch.equal(net.model[0].weight, before)  # type: ignore[index,union-attr,arg-type]
    net.model[0].requires_grad_(True)  # type: ignore[index,union-attr]
    trainer.step(X, Y)
    assert not torch.equal(net.model[0].weight, before)  # type: ignore[index,union-attr,arg-type]


def test_casts_of_an_autocast_around_the_whole_loop_are_not_those_of_the_first_step() -> None:
    for engine in (InProcess, Locked):
        nets = [net_of(sg.TrueGradient()) for _ in range(2)]
        trainers = [engine(net, F.cross_entropy, lambda p: torch.optim.SGD(p, 0.5)) for net in nets]
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                nets[0](X)  # casts that are made without gradients would train nothing
            for _ in range(4):
                trainers[0].step(X, Y)
        for _ in range(4):
            with torch.autocast("cpu", torch.bfloat16):
                trainers[1].step(X, Y)
        for name, value in nets[1].state_dict().items():
            assert torch.equal(nets[0].state_dict()[name], value), name

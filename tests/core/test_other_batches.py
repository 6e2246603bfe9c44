"""Batches that run through the network in another way than the example, and gradients past the cuts: refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import synthgrad as sg
from synthgrad.core import CutError
from synthgrad.core.audit import is_due

X, Y = torch.randn(16, 6), torch.randint(0, 3, (16,))


class Changing(nn.Module):
    """Runs in the way that `mode` says."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.mode = ""

    def forward(self, x: Tensor) -> Tensor:
        low = torch.tanh(self.a(x))
        if self.mode == "skipped":
            return self.c(low)
        h = self.b(low)
        if self.mode == "twice":
            h = self.b(h)
        return self.c(torch.relu(h + low if self.mode == "connected" else h))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def in_process(net: sg.core.Decoupled) -> Callable[[], object]:
    trainer = sg.engines.InProcess(net, F.cross_entropy, sgd)
    return lambda: trainer.step(X, Y)


def plain(net: sg.core.Decoupled) -> Callable[[], object]:
    return lambda: F.cross_entropy(net(X, context=Y), Y).backward()


@pytest.mark.parametrize("engine", [in_process, plain])
@pytest.mark.parametrize(
    "rule",
    [sg.TrueGradient(), sg.SyntheticGradient(context=3), sg.NoBackprop()],
    ids=lambda r: type(r).__name__,
)
@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("skipped", "cut after 'b' was not reached"),
        ("twice", "cut after 'b' was reached twice"),
        ("connected", r"'a\.\w+' of module 'b'|module 'output' ran into the graph"),
    ],
)
def test_the_cut_and_the_cause_are_named(mode: str, says: str, rule: sg.Rule, engine: Any) -> None:
    net = sg.decouple(Changing(), ["b"], rule, X)
    step = engine(net)
    step()
    net.model.mode = mode  # type: ignore[assignment]
    with pytest.raises(CutError, match=says) as caught:
        step()
    assert "\n" not in str(caught.value)
    if engine is in_process:
        assert all(p.grad is None for p in net.parameters()), "nothing is left for the next step"
        net.model.mode = ""  # type: ignore[assignment]
        step()


def test_the_plain_loop_looks_at_ever_fewer_batches() -> None:
    assert [n for n in range(1, 40) if is_due(n)] == [1, 2, 4, 8, 16, 32]


# Parameters that the example did not reach


class Experts(nn.Module):
    """An expert runs if it has examples."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        to = (x[:, 0].abs() * 2).long().clamp(max=3)
        out = x.new_zeros(len(x), 8)
        for k, expert in enumerate(self.experts):
            if (to == k).any():
                out[to == k] = expert(x[to == k])
        return out


class Auxiliary(nn.Module):
    """A head that runs in training only; what it gives lies in a tuple, or in a dataclass."""

    def __init__(self, *, boxed: bool) -> None:
        super().__init__()
        self.low, self.aux, self.top = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.boxed = boxed

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        h = torch.relu(self.low(x))
        extra = self.aux(h) if self.training else None
        return self.top(h), Boxed(extra) if self.boxed else extra


@dataclass
class Boxed:
    scores: Tensor | None


def both(output: tuple[Tensor, Any], y: Tensor) -> Tensor:
    extra = output[1].scores if isinstance(output[1], Boxed) else output[1]
    return F.cross_entropy(output[0], y) + 0.3 * F.cross_entropy(extra, y)


def backprop(model: nn.Module, criterion: Any, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        criterion(model(X), Y).backward()
        optimizer.step()


def trained_as_backprop(model: nn.Module, cut: str, example: Tensor, criterion: Any) -> None:
    net = sg.decouple(model, [cut], sg.TrueGradient(), example)
    net.train()
    model.train()
    trainer = sg.engines.InProcess(net, criterion, sgd)
    for _ in range(4):
        trainer.step(X, Y)
    backprop(model, criterion, 4)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(net.model.state_dict()[name], value, msg=name)


def test_experts_without_examples_belong_to_the_module_of_the_others() -> None:
    few = X[:4].clone()
    few[:, 0] = 0.1
    trained_as_backprop(nn.Sequential(Experts(), nn.ReLU(), nn.Linear(8, 3)), "1", few, F.cross_entropy)


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("mode", [False, True], ids=["example in eval", "example in training"])
def test_a_head_of_training_mode_only_learns(boxed: bool, mode: bool) -> None:
    trained_as_backprop(Auxiliary(boxed=boxed).train(mode), "low", X, both)


class Hidden(nn.Module):
    """An object that nobody can look into holds what the example reached."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.aux, self.top = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        h = torch.relu(self.low(x))
        box = type("Box", (), {})()
        box.scores = self.aux(h)
        return self.top(h), box


def test_what_nothing_tells_of_is_refused_at_the_step() -> None:
    net = sg.decouple(Hidden(), ["low"], sg.TrueGradient(), X)
    assert net.graph.unowned == ("aux.weight", "aux.bias")
    criterion = lambda o, y: F.cross_entropy(o[0], y) + F.cross_entropy(o[1].scores, y)  # noqa: E731
    with pytest.raises(CutError, match=r"parameter 'aux.weight' was not reached by the example"):
        sg.engines.InProcess(net, criterion, sgd).step(X, Y)


# What the plain loop cannot do


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.a, self.b, self.reentrant = nn.Linear(6, 6), nn.Linear(6, 3), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda z: self.b(torch.relu(self.a(z))), x, use_reentrant=self.reentrant)  # type: ignore[return-value]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_cut_under_checkpointing_is_refused(reentrant: bool) -> None:
    with pytest.raises(CutError, match="cannot cut after 'a': it runs under activation checkpointing"):
        sg.decouple(Checkpointed(reentrant=reentrant), ["a"], sg.TrueGradient(), X.clone().requires_grad_())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_around_the_whole_network_changes_nothing(reentrant: bool) -> None:
    found: list[list[Tensor]] = []
    for around in (False, True):
        torch.manual_seed(0)
        net = sg.decouple(Changing(), ["b"], sg.SyntheticGradient(context=3), X)
        nn.init.ones_(net.rules["b"].model.table)  # type: ignore[union-attr,arg-type]
        x = X.clone().requires_grad_()
        run = lambda z, net=net: net(z, context=Y)  # noqa: E731
        F.cross_entropy(checkpoint(run, x, use_reentrant=reentrant) if around else run(x), Y).backward()  # type: ignore[arg-type]
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        found.append([*grads, net.rules["b"].model.table])  # type: ignore[list-item,union-attr]
    assert len(found[0]) == len(found[1]) == 8
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rule", [sg.SyntheticGradient(), sg.NoBackprop()], ids=["dni", "no_bprop"])
def test_double_backward_is_refused_where_the_credit_is_no_gradient(rule: sg.Rule) -> None:
    critic = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    x = X.clone().requires_grad_()
    net = sg.decouple(critic, ["1"], rule, X)
    with pytest.raises(CutError, match="double backward through the cut after '1'"):
        torch.autograd.grad(net(x).sum(), x, create_graph=True)


def test_double_backward_through_true_gradients_is_that_of_the_plain_network() -> None:
    critic = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    net = sg.decouple(critic, ["1"], sg.TrueGradient(), X.double())
    grads: list[list[Tensor]] = []
    for model in (critic, net):
        x = X.double().requires_grad_()
        (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        (g.norm(2, 1) - 1).square().mean().backward()
        parameters = critic.parameters() if model is critic else net.model.parameters()
        grads.append([p.grad for p in parameters if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_evaluation_mode_is_said_once_and_only_when_it_trains() -> None:
    net = sg.decouple(Changing().eval(), ["b"], sg.NoBackprop(), X)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net(X)  # looking at it is no training
        assert not caught
        for _ in range(2):
            F.cross_entropy(net(X), Y).backward()
    assert [str(w.message).split(":")[0] for w in caught] == [
        "the decoupled network is in evaluation mode, as from_pretrained leaves a model"
    ]
    trainer = sg.engines.InProcess(
        sg.decouple(Changing().eval(), ["b"], sg.NoBackprop(), X), F.cross_entropy, sgd
    )
    with pytest.warns(UserWarning, match="trained without Dropout"):
        trainer.step(X, Y)
    trainer.step(X, Y)  # warnings are errors: the second step says nothing


def test_a_float16_message_is_unscaled_in_float32() -> None:
    """Per-example gradients of 1e-9 fit float16 with a scale of 2¹⁶ only; the rule is told them all the same."""
    told: list[Tensor] = []

    class Listening(sg.Rule):
        def credit(self, h: Tensor, info: sg.core.Info) -> sg.core.Credit:
            assert h.dtype == torch.float32
            return sg.core.Credit(torch.full_like(h, 3e-9))

        def observe(self, h: Tensor, info: Any, message: Any, pending: Any = ()) -> None:
            told.append(message.gradient)

    model = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 4)).half()
    scale = 2.0**16
    x = torch.ones(8, 4, dtype=torch.float16)
    net = sg.decouple(model, ["1"], Listening(), x, loss_scale=lambda: scale)
    made: list[Tensor] = []
    net.model[0].register_forward_hook(lambda m, a, out: out.register_hook(made.append) and None)  # type: ignore[index,union-attr]
    out = net(x)
    out.backward(torch.full_like(out, 1e-9 * scale / 8))
    true = (torch.full((8, 4), 1e-9 * scale / 8).half() @ net.model[2].weight).float() * 8 / scale  # type: ignore[index,operator]
    torch.testing.assert_close(told[0], true)
    assert told[0].abs().max() > 0
    torch.testing.assert_close(made[0].float(), torch.full((8, 4), 3e-9 * scale / 8), rtol=1e-2, atol=0)


def test_unlocked_engines_refuse_float16() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Identity(), nn.Linear(6, 3)).half()
    net = sg.decouple(model, ["1"], sg.NoBackprop(), X.half())
    with pytest.raises(sg.core.ConfigError, match="float16.*use bfloat16"):
        sg.engines.InProcess(net, F.cross_entropy, sgd).step(X.half(), Y)


def test_the_layer_parallel_engine_refuses_float16_too() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3)), nn.Linear(6, 3))
    net = sg.decouple(model, ["0", "1", "2"], sg.SyntheticGradient(context=3), X)
    trainer = sg.engines.LayerParallel(net, F.cross_entropy, sgd, fused=False)
    with (
        torch.autocast("cpu", torch.float16),
        pytest.raises(sg.core.ConfigError, match="float16.*use bfloat16"),
    ):
        trainer.step(X, Y)
    trainer.step(X, Y)

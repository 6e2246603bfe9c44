"""Labels that are left out, losses of the user's own, and messages of every shape: as in the in-process engine."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, ContextError
from synthgrad.engines import LayerParallel
from tests.engines.test_layer_parallel import RULES, STACKS, Stack, compare, run, sgd
from tests.networks import CLASSES


class Unlabelled(Stack):
    """Every batch has examples without a label."""

    def batch(self, seed: int, size: int = 6) -> tuple[Tensor, Tensor]:
        x, y = super().batch(seed, size)
        y[seed % size] = y[(seed + 2) % size] = -100
        return x, y


class Numbers(Stack):
    """Targets are numbers, ``(B, 2)``."""

    def batch(self, seed: int, size: int = 6) -> tuple[Tensor, Tensor]:
        x, _ = super().batch(seed, size)
        generator = torch.Generator().manual_seed(100 + seed)
        return x, torch.randn(size, CLASSES, generator=generator, dtype=torch.float64) * 3 - 1


def of(kind: type[Stack], name: str) -> Stack:
    stack = STACKS[name]
    return kind(stack.make, stack.shape, stack.depth)


def sequence_block(a: int, b: int) -> nn.Module:
    return nn.Sequential(nn.Conv1d(a, b, 3, padding=1), nn.BatchNorm1d(b), nn.ReLU())


@pytest.mark.parametrize(
    ("stack", "rule"),
    [
        ("dense", "cdni-hidden"),
        ("residual", "cdni"),
        ("conv", "cdni"),
        ("attention", "cdni"),
        ("dense", "local_loss"),
        ("dense", "sobolev"),
    ],
)
def test_examples_without_a_label(stack: str, rule: str) -> None:
    compare(of(Unlabelled, stack), RULES[rule](), fused=False)


@pytest.mark.parametrize(("stack", "rule"), [("residual", "cdni"), ("conv", "cdni-hidden")])
def test_examples_without_a_label_in_a_graph(stack: str, rule: str) -> None:
    torch.compiler.reset()
    compare(of(Unlabelled, stack), RULES[rule](), fused=False, compile={"backend": "aot_eager"}, steps=10)


@pytest.mark.parametrize("rule", ["cdni", "local_loss"])
@pytest.mark.parametrize("wrong", [CLASSES, -1])
def test_other_labels_out_of_range_are_told_beside_them(rule: str, wrong: int) -> None:
    stack = of(Unlabelled, "dense")
    engine = LayerParallel(stack.net(RULES[rule]()), F.cross_entropy, sgd, fused=False)
    x, y = stack.batch(0)
    y[1] = wrong
    with pytest.raises(ContextError, match=f"got class index {wrong}, expected 0 to {CLASSES - 1}"):
        run(engine, [(x, y)])


def each(outputs: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(outputs, target, reduction="none").mean(1)


@pytest.mark.parametrize("stack", ["dense", "conv", "alone"])
@pytest.mark.parametrize(
    "loss", [F.mse_loss, each, nn.HuberLoss()], ids=["a mean", "of each example", "a module"]
)
def test_a_loss_of_ones_own(stack: str, loss: Any) -> None:
    compare(of(Numbers, stack), sg.LocalLoss(CLASSES, loss=loss), criterion=F.mse_loss)


class Counts(Stack):
    """Targets are counts, ``(B,)``, beyond the number of outputs."""

    def batch(self, seed: int, size: int = 6) -> tuple[Tensor, Tensor]:
        x, y = super().batch(seed, size)
        return x, y * 3


def counted(outputs: Tensor, target: Tensor) -> Tensor:
    return F.poisson_nll_loss(outputs[:, 0], target.to(outputs.dtype), reduction="none")


def test_whole_numbers_need_be_no_classes_to_a_loss_of_ones_own() -> None:
    compare(of(Counts, "dense"), sg.LocalLoss(1, loss=counted), criterion=lambda o, y: counted(o, y).mean())


def test_a_loss_that_learns() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
            return F.mse_loss(self.scale * outputs, target)

    stack = of(Numbers, "dense")
    engine = compare(stack, sg.LocalLoss(CLASSES, loss=Scaled()), criterion=F.mse_loss)
    rules = [interface.rule for interface in engine.net.interfaces.values()]
    scales = {rule.loss.scale.item() for rule in rules}  # type: ignore[union-attr,operator]
    assert len(scales) == len(rules)


def test_different_losses_are_no_batch() -> None:
    stack = of(Numbers, "dense")
    net = stack.net(sg.LocalLoss(CLASSES, loss=F.mse_loss))
    rules = [interface.rule for interface in net.interfaces.values()]
    rules[2].loss = F.l1_loss  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="interfaces '0' and '2' have different losses"):
        LayerParallel(net, F.mse_loss, sgd)


def test_targets_that_are_no_distribution_are_told_in_every_run() -> None:
    stack = of(Numbers, "dense")
    nets = [stack.net(sg.LocalLoss(CLASSES), seed=k) for k in (1, 2)]
    x, y = stack.batch(0)
    soft = y.softmax(1)
    for targets in ((y, soft), (soft, y)):
        engine = LayerParallel([copy.deepcopy(net) for net in nets], F.cross_entropy, sgd)
        with pytest.raises(ContextError, match="rows are no distribution"):
            engine.step(torch.stack([x, x]), torch.stack(targets))
    engine = LayerParallel(nets, F.cross_entropy, sgd)
    engine.step(torch.stack([x, x]), torch.stack([soft, soft]))


@pytest.mark.parametrize("rule", ["cdni", "cdni-hidden", "local_loss-hidden"])
@pytest.mark.parametrize("features_dim", [1, -1])
def test_sequences_of_channels(rule: str, features_dim: int) -> None:
    """What crosses the interfaces is (B, C, L): convolved and averaged along L if it is so told, else tokens."""
    stack = Stack(
        lambda: nn.Sequential(
            sequence_block(2, 4),
            sequence_block(4, 4),
            sequence_block(4, 4),
            nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, CLASSES)),
        ),
        (2, 5),
        depth=4,
    )

    class At(type(RULES[rule]())):  # type: ignore[misc]
        def bind(self, site: Any) -> Any:
            bound = super().bind(replace(site, features_dim=features_dim))
            bound.__class__ = type(RULES[rule]())  # a subclass would be asked in turn
            return bound

    made = RULES[rule]()
    made.__class__ = At
    engine = compare(stack, made)
    parts = {type(m) for m in engine.net.rules.modules()}
    if rule == "local_loss-hidden":
        assert (nn.AdaptiveAvgPool1d in parts) == (features_dim == 1)
    else:
        assert (nn.Conv1d in parts) == (features_dim == 1)

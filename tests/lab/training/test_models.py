"""The networks of feed-forward runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from synthgrad.core import ConfigError
from synthgrad.lab.tasks import load
from synthgrad.lab.training.models import build_model, cuts_of
from synthgrad.lab.training.payloads import FeedForward
from synthgrad.rules import DifferenceTarget


def network(answers: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    payload = FeedForward(
        data="mnist-10k",
        layers=4,
        width=8,
        normalisation="none",
        activation="tanh",
        answers=answers,
        **changes,
    )
    return build_model(payload, load("mnist-10k", None))


def test_hidden_layers_but_the_first_answer_with_targets() -> None:
    usual, targets, feedback = (network(answers) for answers in ("gradients", "targets", "feedback"))
    kinds = {name: isinstance(layer, DifferenceTarget) for name, layer in targets.named_children()}
    assert kinds == {"layer1": False, "layer2": True, "layer3": True, "output": False}
    assert not any(isinstance(layer, DifferenceTarget) for layer in usual.modules())
    for made, learns in ((targets, True), (feedback, False)):
        assert all(p.requires_grad == learns for p in made.get_submodule("layer2.inverse").parameters())
    x = torch.randn(5, 1, 28, 28)
    torch.testing.assert_close(targets(x), usual(x))  # the weights that would be deployed are the same
    payload = FeedForward(
        data="mnist-10k", layers=4, width=8, normalisation="none", activation="tanh", answers="targets"
    )
    assert cuts_of(payload, targets, x) == ["layer1", "layer2", "layer3"]


def test_what_has_no_targets_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="answers 'hints' is unknown; accepted: gradients, targets, feedback"
    ):
        FeedForward(data="mnist-10k", normalisation="none", answers="hints")
    with pytest.raises(
        ConfigError, match="answers 'targets' with BatchNorm: .* use --norm layer or --norm none"
    ):
        FeedForward(data="mnist-10k", answers="targets")
    with pytest.raises(ConfigError, match="answers 'targets' with engine layer-parallel"):
        FeedForward(data="mnist-10k", normalisation="none", answers="targets", engine="layer-parallel")
    with pytest.raises(ConfigError, match="answers 'feedback' with network 'cnn'"):
        FeedForward(data="mnist-10k", arch="cnn", answers="feedback")

"""A decoupled network looks like the model to programs that ask what it takes and what it has."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthgrad as sg


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.top = nn.Linear(4, 6), nn.Linear(6, 3)
        self.config = {"loss_type": "ForCausalLM"}

    def forward(self, inputs: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Tensor:
        return self.top(torch.relu(self.low(inputs)))


def test_the_signature_is_the_models_with_the_context() -> None:
    net = sg.decouple(Model(), ["low"], sg.SyntheticGradient(context=3), torch.randn(5, 4))
    for each in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert list(inspect.signature(each.forward).parameters) == ["inputs", "labels", "context", "kwargs"]
        assert each.forward.__doc__ == type(net).forward.__doc__
    assert list(inspect.signature(type(net).forward).parameters) == ["self", "args", "context", "kwargs"]


def test_attributes_of_the_model_alone_are_found() -> None:
    net = sg.decouple(Model(), ["low"], sg.NoBackprop(), torch.randn(5, 4))
    assert net.config is net.model.config
    assert net.low is net.model.low
    with pytest.raises(AttributeError, match="'Model' object has no attribute 'nothing'"):
        _ = net.nothing
    assert not hasattr(net, "_private")

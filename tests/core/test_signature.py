"""A decoupled network looks like the model to programs that ask what it takes and what it has."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path
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
    expected = ["self", "inputs", "labels", "context", "kwargs"]
    assert list(inspect.signature(type(net).forward).parameters) == expected
    base = inspect.signature(sg.core.Decoupled.forward)
    assert list(base.parameters) == ["self", "args", "context", "kwargs"]


class WithContext(nn.Sequential):
    def forward(self, input: Tensor, context: Any = None) -> Tensor:
        return super().forward(input)


def test_the_keyword_of_the_rules_goes_before_one_of_the_models() -> None:
    model = WithContext(nn.Linear(4, 6), nn.Linear(6, 3))
    net = sg.decouple(model, ["0"], sg.NoBackprop(), torch.randn(5, 4))
    assert list(inspect.signature(net.forward).parameters) == ["args", "context", "kwargs"]
    assert list(inspect.signature(type(net).forward).parameters) == ["self", "args", "context", "kwargs"]


def test_the_class_is_one_like_the_models_and_the_same_for_all_of_them() -> None:
    nets = [sg.decouple(Model(), ["low"], sg.NoBackprop(), torch.randn(5, 4)) for _ in range(2)]
    for each in (*nets, copy.deepcopy(nets[0]), pickle.loads(pickle.dumps(nets[0]))):
        assert type(each) is type(nets[0])
        assert isinstance(each, sg.core.Decoupled)
        assert not isinstance(each, Model)  # it does not have what the model has in its methods
        assert type(each).__name__ == each._get_name() == "Model"
    assert repr(nets[0]).startswith("Model(\n  decoupled after 'low'\n")
    other = sg.decouple(
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), ["0"], sg.NoBackprop(), torch.ones(2, 4)
    )
    assert type(other) is not type(nets[0])
    assert type(other).__name__ == "Sequential"


@pytest.mark.skipif(importlib.util.find_spec("basedpyright") is None, reason="needs basedpyright")
def test_a_type_checker_knows_the_users_class(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import torch, synthgrad as sg\n"
        "from torch import nn\n"
        "class Mine(nn.Module):\n"
        "    def speak(self) -> int: return 1\n"
        "net = sg.decouple(Mine(), ['a'], sg.NoBackprop(), torch.ones(1))\n"
        "reveal_type(net)\n"
        "reveal_type(net.model)\n"
        "reveal_type(sg.recouple(net))\n"
        "trainer = sg.engines.InProcess(net, nn.functional.cross_entropy, lambda p: torch.optim.SGD(p, 0.1))\n"
        "sg.recouple(net).speak()\n",
        encoding="utf-8",
    )
    command = [
        sys.executable,
        "-m",
        "basedpyright",
        "--outputjson",
        "--pythonpath",
        sys.executable,
        str(program),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    report = json.loads(done.stdout)["generalDiagnostics"]
    told = [d["message"].split(" is ")[1].strip('"') for d in report if d["severity"] == "information"]
    assert told == ["Decoupled[Mine]", "Mine", "Mine"]
    assert not [d["message"] for d in report if d["severity"] == "error"]


def test_attributes_of_the_model_alone_are_found() -> None:
    net = sg.decouple(Model(), ["low"], sg.NoBackprop(), torch.randn(5, 4))
    assert net.config is net.model.config
    assert net.low is net.model.low
    with pytest.raises(AttributeError, match="'Model' object has no attribute 'nothing'"):
        _ = net.nothing
    assert not hasattr(net, "_private")

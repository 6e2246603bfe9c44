"""The fused step of the layer-parallel engine: where it is used, what it refuses, and who imports it.

That it computes what the general step does is tested with the engine, by ``fused=True`` and ``fused=False``.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from synthgrad.core import ConfigError, ContextError, ShapeError
from synthgrad.engines import LayerParallel, layer_parallel
from tests.engines.test_layer_parallel import RULES, STACKS, Stack, compare, run, sgd
from tests.engines.test_layer_parallel_labels import Unlabelled, of
from tests.engines.test_layer_parallel_runs import custom, dense
from tests.networks import CLASSES

DENSE = STACKS["dense"]


def test_only_the_engine_imports_it_and_only_one_function() -> None:
    folder = Path(layer_parallel.__file__).parent
    found = [
        (path.name, alias.name)
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and "fused" in (node.module or "")
        for alias in node.names
    ]
    assert found == [("engine.py", "fused_backend")]


def test_a_network_without_biases_is_fused() -> None:
    def layer(a: int) -> nn.Module:
        return nn.Sequential(nn.Linear(a, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU())

    stack = Stack(lambda: nn.Sequential(layer(6), layer(8), layer(8), nn.Linear(8, CLASSES)), (6,), 4)
    compare(stack, RULES["cdni"](), fused=True)


def test_fused_on_demand_only_where_it_fits() -> None:
    for net in (
        custom(nn.Linear(8, 8), nn.Linear(8, 8)),
        dense(8, 8, 8, rule=RULES["cdni-hidden"]()),
        dense(8, 8, 8, rule=RULES["local_loss"]()),
    ):
        with pytest.raises(ConfigError, match="fused=True is for"):
            LayerParallel(net, F.cross_entropy, sgd, fused=True)


def test_what_the_fused_step_cannot_do() -> None:
    engine = LayerParallel(DENSE.net(RULES["cdni"]()), F.cross_entropy, sgd, fused=True)
    with pytest.raises(ShapeError, match="at least 2"):
        engine.step(*DENSE.batch(0, size=1))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ConfigError, match="autocast is on"):
        engine.step(*DENSE.batch(0))
    engine = LayerParallel(DENSE.net(RULES["cdni"]()).eval(), F.cross_entropy, sgd, fused=True)
    with pytest.raises(ConfigError, match="evaluation mode"):
        engine.step(*DENSE.batch(0))


@pytest.mark.parametrize("form", [{}, {"fused": True}, {"compile": {"backend": "aot_eager"}}], ids=str)
def test_the_fused_step_refuses_autocast(form: dict[str, Any]) -> None:
    engine = LayerParallel(DENSE.net(RULES["cdni"]()), F.cross_entropy, sgd, **form)
    run(engine, [DENSE.batch(k) for k in range(8)])
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(ConfigError, match="give fused=False"):
            engine.step(*DENSE.batch(8))
        engine.net.eval()
        with pytest.raises(ConfigError, match="evaluation mode"):
            engine.step(*DENSE.batch(8))
        engine.net.train()
    engine.step(*DENSE.batch(8))


def test_the_fused_step_wants_every_label_and_says_what_to_do() -> None:
    stack = of(Unlabelled, "dense")
    engine = LayerParallel(stack.net(RULES["cdni"]()), F.cross_entropy, sgd, fused=True)
    with pytest.raises(
        ContextError, match=r"class index -100, which means no label, .* give the engine fused=False"
    ):
        run(engine, [stack.batch(0)])

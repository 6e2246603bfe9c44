"""The layer-parallel engine's step as one graph: the same numbers."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from synthgrad.core import ConfigError, DivergedError, ShapeError
from synthgrad.engines import LayerParallel
from tests.engines.test_layer_parallel import RULES, STACKS, compare, run, sgd


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("stack", "rule", "fused"),
    [
        ("dense", "cdni", None),
        ("dense", "cdni", False),
        ("residual", "local_loss", None),
        ("conv", "cdni-hidden", None),
        ("attention", "dni", None),
    ],
)
def test_equals_the_in_process_engine(stack: str, rule: str, fused: bool | None) -> None:
    compare(STACKS[stack], RULES[rule](), fused=fused, compile={"backend": "aot_eager"}, observe=1, steps=12)


@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler uses what torch deprecates
@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="needs a C++ compiler for torch.compile on a CPU",
)
def test_equals_it_by_the_default_compiler() -> None:
    compare(STACKS["dense"], RULES["cdni"](), compile=True)


def test_a_graph_serves_all_steps() -> None:
    engine = LayerParallel(
        STACKS["dense"].net(RULES["cdni"]()), F.cross_entropy, sgd, compile={"backend": "aot_eager"}
    )
    run(engine, [STACKS["dense"].batch(k) for k in range(8)])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for o in engine.optimizers:
            o.param_groups[0]["lr"] *= 0.5
        run(engine, [STACKS["dense"].batch(k) for k in range(4)])


def test_divergence_is_met_in_it_too() -> None:
    engine = LayerParallel(
        STACKS["dense"].net(RULES["cdni"]()), F.cross_entropy, sgd, compile={"backend": "aot_eager"}
    )
    run(engine, [STACKS["dense"].batch(k) for k in range(8)])
    x, y = STACKS["dense"].batch(8)
    with pytest.raises(ShapeError):
        engine.step(x[:4], y[:4])
    with pytest.raises(DivergedError, match="interface '0' was not finite"):
        run(engine, [(x * float("inf"), y)] * 6)


@pytest.mark.parametrize(
    "options", [{"mode": "reduce-overhead"}, {"options": {"triton.cudagraphs": True}}], ids=str
)
def test_graphs_of_cuda_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="asks for CUDA graphs"):
        LayerParallel(STACKS["dense"].net(RULES["cdni"]()), F.cross_entropy, sgd, compile=options)


def test_a_mode_stands_for_options() -> None:
    LayerParallel(STACKS["dense"].net(RULES["cdni"]()), F.cross_entropy, sgd, compile={"mode": "default"})


def test_rules_asked_in_turn_cannot_be() -> None:
    with pytest.raises(ConfigError, match="one by one"):
        LayerParallel(STACKS["dense"].net(RULES["stale"]()), F.cross_entropy, sgd, compile=True)

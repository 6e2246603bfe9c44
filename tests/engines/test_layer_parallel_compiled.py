"""The layer-parallel engine's step as one graph: the same numbers."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from synthgrad.core import ConfigError, DivergedError, ShapeError
from synthgrad.engines import InProcess, LayerParallel
from tests.engines.test_layer_parallel import RULES, STACKS, adam, assert_same, compare, run, sgd


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()


larger_graph = pytest.mark.slow(
    reason="torch.compile traces every step anew; those of dense layers are in the short suite"
)


@pytest.mark.parametrize(
    ("stack", "rule", "fused"),
    [
        ("dense", "cdni", None),
        ("dense", "cdni", False),
        pytest.param("residual", "local_loss", None, marks=larger_graph),
        pytest.param("conv", "cdni-hidden", None, marks=larger_graph),
        pytest.param("attention", "dni", None, marks=larger_graph),
    ],
)
def test_equals_the_in_process_engine(stack: str, rule: str, fused: bool | None) -> None:
    compare(STACKS[stack], RULES[rule](), fused=fused, compile={"backend": "aot_eager"}, observe=1, steps=12)


@pytest.mark.slow(reason="a C++ compiler builds the steps of two optimizers")
@pytest.mark.compiles
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler uses what torch deprecates
@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="needs a C++ compiler for torch.compile on a CPU",
)
def test_equals_it_by_the_default_compiler() -> None:
    compare(STACKS["dense"], RULES["cdni"](), compile=True)
    compare(STACKS["dense"], RULES["cdni"](), adam, atol=1e-8, compile=True)


@pytest.mark.parametrize(
    "observe",
    [
        0,
        pytest.param(
            2,
            marks=pytest.mark.slow(
                reason="torch.compile traces every step anew; those without a lag are in the short suite"
            ),
        ),
    ],
)
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.Adam(p, 1e-2, fused=True),
        lambda p: torch.optim.Adam(p, 1e-2, weight_decay=0.1, maximize=True),
        lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1, betas=(0.8, 0.95)),
        lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    ],
    ids=["adam", "decayed", "adamw", "amsgrad"],
)
def test_equals_it_with_an_update_in_the_graph(optimizer: Any, observe: int) -> None:
    options = {"rule_options": {"lr": 5e-3}}
    engine = compare(
        *(STACKS["dense"], RULES["cdni"](), optimizer),
        **{"atol": 1e-8, "options": options, "compile": {"backend": "aot_eager"}, "observe": observe},
    )
    has_it = engine._updates._adam is not None
    assert has_it == (not engine.optimizers[0].param_groups[0]["amsgrad"])


def test_an_update_in_the_graph_heeds_settings_and_state() -> None:
    net = STACKS["dense"].net(RULES["cdni"]())
    twin = copy.deepcopy(net)
    ours = LayerParallel(net, F.cross_entropy, adam, compile={"backend": "aot_eager"})
    theirs = InProcess(twin, F.cross_entropy, adam, lags=ours.lags)
    for k in range(16):
        x, y = STACKS["dense"].batch(k)
        for engine in (ours, theirs):
            engine.step(x, y)
            for o in engine.optimizers:
                o.param_groups[0]["lr"] *= 0.9
                if k == 8:
                    o.param_groups[0]["weight_decay"] = 0.1
                if k == 10:  # as a user would that goes back to an older state
                    o.load_state_dict(copy.deepcopy(o.state_dict()))
                if k == 13:  # not what the graph does
                    o.param_groups[0]["maximize"] = True
        assert (ours._updates._adam is not None) == (5 <= k <= 13)
    assert_same(net, twin, 1e-8)
    for a, b in zip(ours.optimizers, theirs.optimizers, strict=True):
        for p, q in zip(a.state.values(), b.state.values(), strict=True):
            assert p["step"] == q["step"]
            assert torch.allclose(p["exp_avg"], q["exp_avg"], atol=1e-9)


def test_what_has_diverged_is_not_learned() -> None:
    engine = LayerParallel(
        STACKS["dense"].net(RULES["cdni"]()), F.cross_entropy, adam, compile={"backend": "aot_eager"}
    )
    run(engine, [STACKS["dense"].batch(k) for k in range(8)])
    x, y = STACKS["dense"].batch(8)

    def learned() -> list[Any]:
        return [dict(engine.net.named_parameters()), [o.state_dict() for o in engine.optimizers]]

    before = copy.deepcopy(learned())
    with pytest.raises(DivergedError, match="activation at interface '0' was not finite at step 8"):
        engine.step(x * float("inf"), y)
    torch.testing.assert_close(learned(), before, rtol=0, atol=0)


def test_engines_of_one_shape_have_graphs_of_their_own() -> None:
    losses: list[float] = []
    for factor in (1, 100):
        net = STACKS["dense"].net(RULES["cdni"]())
        engine = LayerParallel(
            *(net, lambda o, y, factor=factor: factor * F.cross_entropy(o, y), sgd),
            compile={"backend": "aot_eager"},
        )
        losses.append(run(engine, [STACKS["dense"].batch(k) for k in range(8)])[-1].loss)
    assert losses[1] > 10 * losses[0]


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

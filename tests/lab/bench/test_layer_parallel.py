"""``bench layer-parallel``: true peers, ratios to the best of them, and work that is counted right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from synthgrad.core import ConfigError
from synthgrad.engines import LayerParallel
from synthgrad.lab.bench import layer_parallel as bench
from synthgrad.lab.bench import turns
from synthgrad.lab.bench.base import Size
from synthgrad.lab.bench.batches import digits
from synthgrad.lab.bench.declarations import LAYER_PARALLEL, LAYER_PARALLEL_METHODS
from synthgrad.lab.bench.layer_parallel import LayerCase, LayerParallelBench
from synthgrad.lab.bench.roofline import Machine, Work, dense_work, measure_machine
from synthgrad.lab.records import Record

SMOKE = LAYER_PARALLEL.tiers["smoke"]
SIZE = Size(seed=0, width=12, layers=6, batch_size=16)


def lines_of(**changes: Any) -> list[Record]:
    (setting,) = LayerParallelBench().settings(replace(SMOKE, **changes))
    lines = list(setting.measure())
    assert [line.cell for line in lines] == [line.cell for line in setting.lines]
    return lines


def test_every_peer_is_measured_and_compared_with_the_best() -> None:
    lines = lines_of()
    assert [line.method for line in lines] == ["backprop_eager", "layer_parallel"]
    for line in lines:
        assert line.status == "ok", line.error
        assert line.experiment == "bench/layer-parallel"
        assert line.cell == {
            "width": 16, "layers": 4, "batch_size": 32, "threads": 1, "compiled": False,
        }  # fmt: skip
        metrics = line.metrics
        assert metrics["step_ms_p10"] <= metrics["step_ms_median"] <= metrics["step_ms_p90"]
        assert metrics["ratio_to_roofline"] == pytest.approx(
            metrics["step_ms_median"] / metrics["roofline_ms"]
        )
        assert metrics["ratio_to_roofline"] > 1
    assert lines[0].metrics["ratio_to_best_backprop"] == 1.0


def test_the_best_of_the_peers_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    def take(timed: dict[LayerCase, Any], rounds: int, device: str) -> dict[LayerCase, str]:
        for case, turn in timed.items():
            turn.times_ms += [2.0, 4.0] if case.is_ours else [4.0, 4.0] if case.compiled else [6.0, 6.0]
        return {}

    monkeypatch.setattr(turns, "take_turns", take)
    monkeypatch.setattr(bench, "make_step", lambda *args: lambda: None)
    lines = lines_of(modes=("eager", "compiled"))
    found = [(r.method, r.cell["compiled"], r.metrics["ratio_to_best_backprop"]) for r in lines]
    assert found == [
        ("backprop_eager", False, 1.5),
        ("backprop_compiled", True, 1.0),
        ("layer_parallel", False, 0.75),
        ("layer_parallel", True, 0.75),
    ]


def test_a_peer_that_fails_is_a_line_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench.make_step

    def make(case: LayerCase, *rest: Any) -> Any:
        if case.method == "backprop_compiled":
            raise RuntimeError("no compiler\nis there")
        return made(replace(case, compiled=False), *rest)

    monkeypatch.setattr(bench, "make_step", make)
    lines = lines_of(modes=("compiled",))
    assert [(r.status, r.error) for r in lines] == [
        ("ok", None),
        ("failed", "RuntimeError: no compiler"),
        ("ok", None),
    ]


def test_learning_is_timed_along() -> None:
    for line in lines_of(learn=True):
        metrics = line.metrics
        assert metrics["target_accuracy_pct"] == 92.0
        assert 10 < metrics["accuracy_pct"] < 100
        assert "learn_error" not in metrics


def test_without_a_peer_there_is_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench.make_step

    def make(case: LayerCase, *rest: Any) -> Any:
        if not case.is_ours:
            raise RuntimeError("broken")
        return made(case, *rest)

    monkeypatch.setattr(bench, "make_step", make)
    assert [(r.status, r.metrics) for r in lines_of()] == [("failed", {})] * 2


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"methods": ("cdni",)}, "unknown to bench layer-parallel; accepted: backprop_eager"),
        ({"methods": ("backprop_cudagraph",)}, "needs --device cuda"),
        ({"batch_sizes": (1,)}, "expected 2 to"),
    ],
)
def test_what_it_does_not_measure(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        LayerParallelBench().settings(replace(SMOKE, **changes))


def test_tiers_have_all_methods_and_the_sweep_that_is_documented() -> None:
    full: Any = LAYER_PARALLEL.tiers["full"]
    assert (full.widths, full.batch_sizes, full.layers) == (
        (64, 256, 1024),
        (32, 256),
        (4, 8, 16, 32, 64, 128),
    )
    assert full.methods == LAYER_PARALLEL_METHODS
    usual = tuple(method for method in LAYER_PARALLEL_METHODS if method != "layer_parallel_general")
    assert all(LAYER_PARALLEL.tiers[tier].methods == usual for tier in ("smoke", "quick"))


def test_the_general_step_is_measured_beside_the_one_that_is_written_out() -> None:
    methods = ("layer_parallel", "layer_parallel_general")
    lines = lines_of(methods=methods, modes=("eager",))
    assert [(r.method, r.status) for r in lines] == [
        ("backprop_eager", "ok"),
        ("layer_parallel", "ok"),
        ("layer_parallel_general", "ok"),
    ]
    general = lines[2]
    assert general.config["rule"] == lines[1].config["rule"]
    assert general.metrics["flop"] == lines[1].metrics["flop"] > lines[0].metrics["flop"]
    cases = LayerParallelBench().cases(replace(SMOKE, methods=methods, modes=("eager", "compiled")), SIZE)
    assert [case.compiled for case in cases if case.is_general] == [False, True]
    batches = digits(16, 0, "cpu")
    backends = [_engine_of(bench.make_step(LayerCase(m, compiled=False), SIZE, batches)) for m in methods]
    assert backends == ["FusedBackend", "GeneralBackend"]


def _engine_of(step: Any) -> str:
    """Return the kind of step that the engine in a benchmark's function runs."""
    engines = [cell.cell_contents for cell in step.__closure__]
    (engine,) = (e for e in engines if isinstance(e, LayerParallel))
    return type(engine._backend).__name__


def test_what_the_general_step_learns_is_not_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_learned", lambda case, size, scope: {"accuracy_pct": 90.0})
    lines = lines_of(methods=("layer_parallel", "layer_parallel_general"), learn=True)
    assert ["accuracy_pct" in line.metrics for line in lines] == [True, True, False]
    assert ["learn" in line.config for line in lines] == [True, True, False]


# The roofline


@pytest.mark.parametrize("method", ["backprop_eager", "layer_parallel", "layer_parallel_general"])
def test_the_products_of_a_step_are_counted(method: str) -> None:
    case = LayerCase(method, compiled=False)
    step = bench.make_step(case, SIZE, digits(16, 0, "cpu"))
    for _ in range(SIZE.layers + 2):
        step()
    with FlopCounterMode(display=False) as counter:
        step()
    counted = counter.get_total_flops()
    assert counted == dense_work(784, 10, 6, 12, 16, decoupled=case.is_ours).flop


def test_bytes_grow_with_parameters_and_with_examples() -> None:
    def moved(**changes: int) -> int:
        size = {"inputs": 784, "classes": 10, "layers": 6, "width": 64, "batch_size": 32} | changes
        return dense_work(**size, decoupled=False).moved_bytes

    layer = 64 * 64 + 3 * 64
    assert moved(layers=7) - moved() == 4 * (8 * layer + 8 * 32 * 64)
    assert moved(batch_size=33) - moved() == 4 * (8 * 5 * 64 + 2 * 784)
    more = dense_work(784, 10, 6, 64, 32, decoupled=True).moved_bytes - moved()
    assert more == 4 * 5 * (8 * (64 + 10) * 64 + 4 * 32 * 64)


def test_the_nearer_limit_counts() -> None:
    machine = Machine(flop_per_s=1e9, bytes_per_s=1e6)
    assert machine.least_ms(Work(2_000_000, 1000)) == pytest.approx(2.0)
    assert machine.least_ms(Work(2_000_000, 5000)) == pytest.approx(5.0)


def test_a_machine_is_measured() -> None:
    found = measure_machine("cpu", torch.get_num_threads(), 1_000_000)
    assert 1e8 < found.flop_per_s < 1e14
    assert 1e8 < found.bytes_per_s < 1e13
    assert measure_machine("cpu", torch.get_num_threads(), 1_000_000) is found

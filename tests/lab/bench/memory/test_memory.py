"""``bench memory``: what grows with depth and what does not, peers that are true, one process for each line."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synthgrad.core import ConfigError
from synthgrad.lab.bench.base import Size, choose
from synthgrad.lab.bench.declarations import MEMORY, MemoryScope
from synthgrad.lab.bench.memory import probe
from synthgrad.lab.bench.memory.fcn import MAKERS, DenseBench, DenseCase, observe, segments_of
from synthgrad.lab.tasks import fully_connected

WIDTH, BATCH = 24, 32
ACTIVATION = WIDTH * BATCH * 4
STATISTICS = 2 * WIDTH * 4  # BatchNorm's means and deviations of the batch


SCOPE = MemoryScope(widths=(WIDTH,), layers=(3,), batch_sizes=(BATCH,), rounds=1)


def size(layers: int) -> Size:
    return Size(seed=0, width=WIDTH, layers=layers, batch_size=BATCH)


@cache
def saved(method: str, layers: int, segments: int | None = None) -> int:
    """Return the most bytes held in a step, measured in this process."""
    return observe(SCOPE, size(layers), DenseCase(method, segments))["saved_bytes_peak"]


def test_backpropagation_holds_two_activations_of_each_layer() -> None:
    # BatchNorm keeps its input, ReLU its output, which is the next layer's input.
    per_layer = saved("backprop", 6) - saved("backprop", 5)
    assert per_layer == 2 * ACTIVATION + STATISTICS
    assert saved("backprop", 9) - saved("backprop", 5) == 4 * per_layer


def test_what_an_unlocked_step_holds_does_not_grow_with_depth() -> None:
    assert saved("in_process", 5) == saved("in_process", 9) < saved("backprop", 5)


def test_checkpointing_lies_between() -> None:
    for segments in segments_of(9):
        assert saved("in_process", 9) < saved("checkpointing", 9, segments) < saved("backprop", 9)
    grows = [min(saved("checkpointing", n, s) for s in segments_of(n)) for n in (5, 9, 17)]
    assert grows == sorted(set(grows))


@pytest.mark.parametrize("layers", [3, 5, 9, 12, 17])
def test_the_peer_has_the_segments_that_hold_the_least(layers: int) -> None:
    names = segments_of(layers)
    (best,) = (s for s, name in names.items() if name == "fewest bytes")
    held = {s: saved("checkpointing", layers, s) for s in range(1, layers)}
    # Within the small change of statistics and logarithms, which the formula leaves out.
    assert held[best] <= min(held.values()) + ACTIVATION // 2, held
    assert names.get(layers - 1) == ("fewest bytes" if best == layers - 1 else "every layer")


def test_peak_and_time_are_measured_along() -> None:
    found = observe(replace(SCOPE, rounds=2), size(3), DenseCase("backprop"))
    assert set(found) == {"saved_bytes_peak", "peak_bytes", "step_ms_median", "step_ms_p10", "step_ms_p90"}
    assert 0 < found["step_ms_p10"] <= found["step_ms_median"] <= found["step_ms_p90"]
    assert found["peak_bytes"] is None or isinstance(found["peak_bytes"], int)


def test_no_peak_where_the_mark_cannot_be_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(probe.Path, "write_text", refuse)
    assert observe(SCOPE, size(3), DenseCase("backprop"))["peak_bytes"] is None


# A true peer


def trained(method: str, segments: int | None) -> dict[str, Tensor]:
    """Return parameters and gradients after some steps from the same start."""
    torch.manual_seed(0)
    model = fully_connected((12,), 10, 6, WIDTH)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(BATCH, 12, generator=generator), torch.randint(10, (BATCH,), generator=generator)
    step, _ = MAKERS[method](model, x, y, segments)
    for _ in range(3):
        step()
    found = {n: p.detach() for n, p in model.named_parameters()}
    return found | {f"{n}.grad": p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("segments", [1, 2, 3, 5])
def test_checkpointing_computes_the_gradients_of_backpropagation(segments: int) -> None:
    ours, theirs = trained("checkpointing", segments), trained("backprop", None)
    assert len(ours) == len(theirs) == 2 * len(list(fully_connected((12,), 10, 6, WIDTH).parameters()))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0, msg=name)


def test_the_unlocked_step_updates_every_module() -> None:
    model = fully_connected((12,), 10, 4, WIDTH)
    x, y = torch.randn(BATCH, 12), torch.randint(10, (BATCH,))
    step, tensors = MAKERS["in_process"](model, x, y, None)
    done: Any = step()
    assert done.updated == ["layer1", "layer2", "layer3", "output"]
    own = {id(p) for p in model.parameters()}
    assert not own & {id(t) for t in tensors}, "a copy is trained, and the copy's tensors are left out"


# Lines


def _report_process(scope: MemoryScope, size: Size, case: DenseCase) -> dict[str, Any]:
    """Stand in for a measurement: one line fails, one dies, the others say in which process they are."""
    if case.method == "checkpointing":
        raise RuntimeError("no memory\nand more")
    if case.method == "in_process":
        os._exit(3)
    return {"saved_bytes_peak": os.getpid(), "peak_bytes": None, "step_ms_median": 2.0}


@pytest.mark.slow(reason="measures memory in a process for each line")
def test_every_line_has_a_process_of_its_own_and_failures_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DenseBench, "observe", staticmethod(_report_process))
    (setting,) = DenseBench().settings(replace(SCOPE, methods=("checkpointing", "in_process")))
    found = {r.method: r for r in setting.measure()}
    assert list(found) == ["backprop", "checkpointing", "in_process"]
    assert found["backprop"].metrics["saved_bytes_peak"] != os.getpid()
    assert found["backprop"].metrics["ratio_to_backprop"] == 1
    assert "ratio_peak_to_backprop" not in found["backprop"].metrics, "there was no peak"
    assert {r.status for r in found.values()} == {"ok", "failed"}
    assert found["checkpointing"].error == "RuntimeError: no memory"
    assert "died" in found["in_process"].error
    assert found["checkpointing"].metrics == found["in_process"].metrics == {}


def test_without_its_reference_a_line_has_no_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def measure(observe: object, scope: MemoryScope, size: Size, case: DenseCase) -> dict[str, Any]:
        calls.append(case.method)
        if case.method == "backprop":
            raise MemoryError
        return {"saved_bytes_peak": 1, "peak_bytes": 2, "step_ms_median": 3.0}

    monkeypatch.setattr(probe, "in_own_process", measure)
    (setting,) = DenseBench().settings(replace(SCOPE, layers=(5,), methods=("in_process",)))
    backprop, ours = setting.measure()
    assert (backprop.status, backprop.error) == ("failed", "MemoryError: ")
    assert (ours.status, set(ours.metrics)) == (
        "ok",
        {"saved_bytes_peak", "peak_bytes", "step_ms_median"},
    )
    assert calls == ["backprop", "in_process"]


def test_lines_of_a_setting() -> None:
    settings = DenseBench().settings(choose(MEMORY))
    assert len(settings) == 4
    for setting in settings:
        cells = [(line.method, line.cell["segments"]) for line in setting.lines]
        layers = setting.lines[0].cell["layers"]
        assert cells == [
            ("backprop", None),
            *(("checkpointing", s) for s in segments_of(layers)),
            ("in_process", None),
        ]
        for line in setting.lines:
            assert set(line.cell) >= {"width", "layers", "batch_size", "threads"}
            assert line.experiment == "bench/memory"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"methods": ("cdni",)}, "'cdni' is unknown to bench memory"),
        ({"batch_sizes": (10_001,)}, "batch size"),
    ],
)
def test_what_cannot_be_measured(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DenseBench().settings(replace(SCOPE, **wrong))


def test_networks_of_two_layers_have_one_segment() -> None:
    assert segments_of(2) == {1: "fewest bytes"}
    assert isinstance(fully_connected((4,), 2, 2, 3)[:-1], nn.Sequential)

"""``bench unroll`` and ``bench memory --arch lstm``: peers that are true, and what grows with the horizon."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

from synthgrad.core import ConfigError
from synthgrad.lab.bench import unroll as bench_unroll
from synthgrad.lab.bench.base import choose
from synthgrad.lab.bench.memory.bench import MemoryBench
from synthgrad.lab.bench.memory.lstm import _Job, _observe
from synthgrad.lab.bench.unroll import METHODS, UnrollBench
from synthgrad.lab.bench.unroll_maker import HAND_WRITTEN, WHOLE, UnrollSize, make_unroll


def test_the_hand_written_loop_learns_what_the_engine_learns() -> None:
    size = UnrollSize(width=8, unroll=3, horizon=3, batch_size=4, tokens=7)
    by_hand, theirs = make_unroll(HAND_WRITTEN, size, 0, "cpu")
    by_engine, ours = make_unroll("bptt", size, 0, "cpu")
    for a, b in zip(theirs, ours, strict=True):
        assert torch.equal(a, b)  # same weights, same tokens
    before = copy.deepcopy(theirs)
    for _ in range(3):
        by_hand()
        by_engine()
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.equal(theirs[0], before[0])


def test_every_method_is_measured_beside_the_hand_written_loop() -> None:
    bench = UnrollBench()
    (setting,) = bench.settings(bench.tiers["smoke"])
    records = list(setting.measure())
    assert [r["method"] for r in records] == [HAND_WRITTEN, *METHODS]
    for record in records:
        assert record["status"] == "ok"
        assert record["metrics"]["step_ms_median"] > 0
    assert records[0]["metrics"]["ratio_to_hand_written"] == 1.0
    assert records[0]["cell"]["unroll"] == 3


def test_a_peer_that_fails_is_a_line_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(method: str, *rest: object) -> object:
        if method == "dni":
            raise RuntimeError("out of luck")
        return make_unroll(method, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(bench_unroll, "make_unroll", broken)
    bench = UnrollBench()
    (setting,) = bench.settings(bench.tiers["smoke"])
    found = {r["method"]: (r["status"], r["error"]) for r in setting.measure()}
    assert found["dni"] == ("failed", "RuntimeError: out of luck")
    assert found["bptt"] == ("ok", None)


@cache
def held(method: str, unroll: int, horizon: int) -> int:
    size = UnrollSize(16, unroll, horizon, 8)
    return _observe(_Job(method, size, 0, torch.get_num_threads(), "cpu", 1))["saved_bytes_peak"]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_held_grows_with_the_unroll_and_not_with_the_horizon(method: str) -> None:
    assert held(method, 4, 8) == held(method, 4, 24)
    assert held(method, 8, 24) > 1.5 * held(method, 4, 24)


def test_full_backpropagation_holds_the_whole_horizon() -> None:
    assert held(WHOLE, 4, 24) > 2 * held(WHOLE, 4, 8)
    assert held(WHOLE, 4, 24) == held(WHOLE, 8, 24)


@pytest.mark.slow(reason="every line is measured in a process with a PyTorch of its own")
def test_lines_of_memory_come_from_processes_of_their_own() -> None:
    bench = MemoryBench()
    scope = choose(bench, "smoke", arch="lstm", unrolls=(4,), methods=("dni",))
    (setting,) = bench.settings(scope)
    records = list(setting.measure())
    assert [(r["method"], r["status"]) for r in records] == [(WHOLE, "ok"), ("dni", "ok")]
    assert records[1]["metrics"][f"ratio_to_{WHOLE}"] < 1
    assert records[1]["cell"] == {
        **{"arch": "lstm", "width": 16, "layers": 1, "batch_size": 8},
        **{"unroll": 4, "horizon": 8, "threads": 1},
    }


def test_what_is_not_measured_is_told() -> None:
    bench, memory = UnrollBench(), MemoryBench()
    with pytest.raises(ConfigError, match="method 'cdni' is unknown to bench unroll"):
        bench.settings(choose(bench, "smoke", methods=("cdni",)))
    with pytest.raises(ConfigError, match="eager, in float32"):
        bench.settings(choose(bench, "smoke", layers=(3,)))
    with pytest.raises(ConfigError, match="unroll of 3: expected a number that divides"):
        memory.settings(choose(memory, "smoke", arch="lstm", unrolls=(3,)))
    with pytest.raises(ConfigError, match="unknown to bench memory --arch lstm"):
        memory.settings(choose(memory, "smoke", arch="lstm", methods=("checkpointing",)))
    with pytest.raises(ConfigError, match="has no unrolls; leave out --unroll"):
        choose(memory, "smoke", unrolls=(3,))

"""``bench unroll`` and ``bench memory --arch lstm``: peers that are true, and what grows with the horizon."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch

from synthgrad.core import ConfigError
from synthgrad.lab.bench import unroll as bench_unroll
from synthgrad.lab.bench.base import choose
from synthgrad.lab.bench.declarations import MEMORY, UNROLL
from synthgrad.lab.bench.memory.lstm import LstmBench, observe
from synthgrad.lab.bench.unroll import UnrollBench
from synthgrad.lab.bench.unrolls import HAND_WRITTEN, WHOLE, UnrollSize, make_unroll
from synthgrad.lab.names import RECURRENT

METHODS = tuple(RECURRENT)
SMOKE: Any = MEMORY.networks["lstm"]["smoke"]


def test_the_hand_written_loop_learns_what_the_engine_learns() -> None:
    size = UnrollSize(seed=0, width=8, unroll=3, batch_size=4, tokens=7)
    by_hand, theirs = make_unroll(HAND_WRITTEN, size, "cpu")
    by_engine, ours = make_unroll("bptt", size, "cpu")
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
    (setting,) = bench.settings(choose(UNROLL, "smoke"))
    records = list(setting.measure())
    assert [r.method for r in records] == [HAND_WRITTEN, *METHODS]
    for record in records:
        assert record.status == "ok"
        assert record.metrics["step_ms_median"] > 0
    assert records[0].metrics["ratio_to_hand_written"] == 1.0
    assert records[0].cell["unroll"] == 3


def test_a_peer_that_fails_is_a_line_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(method: str, *rest: object) -> object:
        if method == "dni":
            raise RuntimeError("out of luck")
        return make_unroll(method, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(bench_unroll, "make_unroll", broken)
    bench = UnrollBench()
    (setting,) = bench.settings(choose(UNROLL, "smoke"))
    found = {r.method: (r.status, r.error) for r in setting.measure()}
    assert found["dni"] == ("failed", "RuntimeError: out of luck")
    assert found["bptt"] == ("ok", None)


@cache
def held(method: str, unroll: int, horizon: int) -> int:
    size = UnrollSize(seed=0, width=16, unroll=unroll, horizon=horizon, batch_size=8)
    return observe(SMOKE, size, method)["saved_bytes_peak"]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_held_grows_with_the_unroll_and_not_with_the_horizon(method: str) -> None:
    assert held(method, 4, 8) == held(method, 4, 24)
    assert held(method, 8, 24) > 1.5 * held(method, 4, 24)


def test_full_backpropagation_holds_the_whole_horizon() -> None:
    assert held(WHOLE, 4, 24) > 2 * held(WHOLE, 4, 8)
    assert held(WHOLE, 4, 24) == held(WHOLE, 8, 24)


@pytest.mark.slow(reason="every line is measured in a process with a PyTorch of its own")
def test_lines_of_memory_come_from_processes_of_their_own() -> None:
    bench = LstmBench()
    scope = choose(MEMORY, "smoke", arch="lstm", unrolls=(4,), methods=("dni",))
    (setting,) = bench.settings(scope)
    records = list(setting.measure())
    assert [(r.method, r.status) for r in records] == [(WHOLE, "ok"), ("dni", "ok")]
    assert records[1].metrics[f"ratio_to_{WHOLE}"] < 1
    assert records[1].cell == {
        **{"arch": "lstm", "width": 16, "layers": 1, "batch_size": 8},
        **{"unroll": 4, "horizon": 8, "threads": 1},
    }


def test_what_is_not_measured_is_told() -> None:
    bench, memory = UnrollBench(), LstmBench()
    with pytest.raises(ConfigError, match="method 'cdni' is unknown to bench unroll"):
        bench.settings(choose(UNROLL, "smoke", methods=("cdni",)))
    with pytest.raises(ConfigError, match="unroll of 3: expected a number that divides"):
        memory.settings(choose(MEMORY, "smoke", arch="lstm", unrolls=(3,)))
    with pytest.raises(ConfigError, match="unknown to bench memory; accepted: full_bptt"):
        memory.settings(choose(MEMORY, "smoke", arch="lstm", methods=("checkpointing",)))
    with pytest.raises(ConfigError, match="bench memory has no --unroll; leave it out"):
        choose(MEMORY, "smoke", unrolls=(3,))
    with pytest.raises(ConfigError, match="bench memory with --arch lstm has no --layers; leave it out"):
        choose(MEMORY, "smoke", arch="lstm", layers=(3,))

"""Stages that sleep: how long, and in training alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from synthgrad.lab.bench.pipeline import slow
from synthgrad.lab.bench.pipeline.slow import Slowdown


class _Clock:
    """Stands in for the module of time: to sleep takes exactly as long as is asked for."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_step_takes_so_many_times_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr(slow, "time", clock)
    module = nn.Linear(2, 2)
    slowdown = Slowdown(module, 2.5)
    taken = []
    for _ in range(4):
        start = clock.now
        clock.now += 3.0
        module(torch.ones(1, 2))
        clock.now += 1.0
        taken.append(clock.now - start)
        slowdown.record(clock.now - start)
    assert taken == [4.0, 10.0, 10.0, 10.0]
    module.eval()
    before = clock.now
    module(torch.ones(1, 2))
    assert clock.now == before


def test_a_factor_of_one_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr(slow, "time", clock)
    module = nn.Linear(2, 2)
    slowdown = Slowdown(module, 1.0)
    slowdown.record(4.0)
    module(torch.ones(1, 2))
    assert clock.now == 0.0

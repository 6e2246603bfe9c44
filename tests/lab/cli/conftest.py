"""Fixtures: a small comparison that many tests read, and shortened runs for tests that check no values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from synthgrad.lab.recipes import Experiment
from synthgrad.lab.training.run import Run
from tests.lab.cli.helpers import SMALL, call


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small comparison; tests must not change it."""
    out = tmp_path_factory.mktemp("done")
    assert call(*SMALL, "--out", out, "--quiet") == 0
    return out


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten an experiment's runs to a twentieth of their steps, for tests that check records and not what is learned."""
    whole = Experiment.runs

    def runs(*args: Any, **options: Any) -> list[Run]:
        return [
            replace(run, schedule=replace(run.schedule, steps=-(-run.schedule.steps // 20), eval_every=20))
            for run in whole(*args, **options)
        ]

    monkeypatch.setattr(Experiment, "runs", runs)

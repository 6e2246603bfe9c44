from __future__ import annotations

import pytest

from synthgrad.lab.recipes import Choice, experiment_named, table1
from synthgrad.lab.training.methods import METHODS
from synthgrad.lab.training.train import train


def test_full_is_the_papers() -> None:
    made = experiment_named("table1").runs("full")
    assert {(c.schedule.steps, c.schedule.lr, c.schedule.batch_size) for c in made} == {(500_000, 3e-5, 256)}
    factors = [made[0].schedule.lr_factor(s) for s in (299_999, 300_000, 399_999, 400_000)]
    assert factors == pytest.approx([1.0, 0.1, 0.1, 0.01])
    widths = {(c.payload.data, c.payload.arch): c.payload.width for c in made}
    assert widths == {
        ("mnist", "fcn"): 256,
        ("cifar10", "fcn"): 1000,
        ("mnist", "cnn"): 64,
        ("cifar10", "cnn"): 128,
    }
    assert {c.precision for c in made} == {"float32"}


@pytest.mark.parametrize("tier", ["quick", "full"])
def test_every_row_of_the_table(tier: str) -> None:
    made = experiment_named("table1").runs(tier, choice=Choice(methods=tuple(METHODS)))
    rows = {(c.payload.data, c.payload.arch, c.payload.layers) for c in made}
    depths = {"fcn": (3, 4, 5, 6), "cnn": (3, 4)}
    assert rows == {(d, a, n) for d in ("mnist", "cifar10") for a in depths for n in depths[a]}
    for row in rows:
        columns = [c for c in made if (c.payload.data, c.payload.arch, c.payload.layers) == row]
        assert [c.method for c in columns][:4] == list(table1.METHODS)
        assert {c.method for c in columns} == set(METHODS)
        assert len({(c.schedule, c.precision, c.payload.width) for c in columns}) == 1


@pytest.mark.slow(reason="trains networks until they have learned")
@pytest.mark.parametrize("arch", ["fcn", "cnn"])
def test_smoke_learns(arch: str) -> None:
    (config,) = [
        c
        for c in experiment_named("table1").runs("smoke")
        if (c.payload.arch, c.method) == (arch, "backprop")
    ]
    record = train(config)
    assert record["status"] == "ok"
    assert record["metrics"]["test_error_pct"] < 60  # chance is 90

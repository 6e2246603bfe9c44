from __future__ import annotations

import pytest

from synthgrad.lab.experiments import table1
from synthgrad.lab.experiments.methods import METHODS
from synthgrad.lab.experiments.train import run


def test_full_is_the_papers() -> None:
    made = table1.configs("full", (0,), "cpu", None)
    assert {(c.schedule.steps, c.schedule.lr, c.schedule.batch_size) for c in made} == {(500_000, 3e-5, 256)}
    factors = [made[0].schedule.lr_factor(s) for s in (299_999, 300_000, 399_999, 400_000)]
    assert factors == pytest.approx([1.0, 0.1, 0.1, 0.01])
    widths = {(c.cell.data, c.cell.arch): c.cell.width for c in made}
    assert widths == {
        ("mnist", "fcn"): 256,
        ("cifar10", "fcn"): 1000,
        ("mnist", "cnn"): 64,
        ("cifar10", "cnn"): 128,
    }
    assert {c.precision for c in made} == {"float32"}


@pytest.mark.parametrize("tier", ["quick", "full"])
def test_every_row_of_the_table(tier: str) -> None:
    made = table1.configs(tier, (0,), "cpu", None)
    rows = {(c.cell.data, c.cell.arch, c.cell.layers) for c in made}
    depths = {"fcn": (3, 4, 5, 6), "cnn": (3, 4)}
    assert rows == {(d, a, n) for d in ("mnist", "cifar10") for a in depths for n in depths[a]}
    for row in rows:
        columns = [c for c in made if (c.cell.data, c.cell.arch, c.cell.layers) == row]
        assert [c.method for c in columns][:4] == list(table1.METHODS)
        assert {c.method for c in columns} == set(METHODS)
        assert len({(c.schedule, c.precision, c.cell.width) for c in columns}) == 1


@pytest.mark.slow(reason="trains networks until they have learned")
@pytest.mark.parametrize("arch", ["fcn", "cnn"])
def test_smoke_learns(arch: str) -> None:
    (config,) = [
        c for c in table1.configs("smoke", (0,), "cpu", None) if (c.cell.arch, c.method) == (arch, "backprop")
    ]
    record = run(config)
    assert record["status"] == "ok"
    assert record["metrics"]["test_error_pct"] < 60  # chance is 90

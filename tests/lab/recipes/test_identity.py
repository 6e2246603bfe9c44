"""Committed records are still recognised: `--resume` on their folders finds nothing to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthgrad.lab.recipes import Choice, comparison, experiment_named
from synthgrad.lab.records import FILE, finished, identity, read
from synthgrad.lab.training.train import empty_record

RESULTS = Path(__file__).parents[3] / "results"

#: Folders that the package's own declarations made, with the experiment and the number of runs. Other folders are of
#: settings that were changed since.
EXPERIMENTS = {
    "cdni_defaults/2026-11-30-intel-xeon-2-cores": ("cdni_defaults", 90),
    "cdni_search/2026-11-30-intel-xeon-2-cores": ("cdni_search", 80),
    "charlm/2026-11-28-amd-epyc-2-cores": ("charlm", 18),
    "charlm_times/2026-11-28-amd-epyc-2-cores": ("charlm", 9),
    "cnn_search/2026-11-21-amd-epyc-2-cores": ("cnn_search", 31),
    "compare_budgets/2026-11-21-amd-epyc-2-cores": ("budgets", 63),
    "copy_5/2026-11-28-amd-epyc-2-cores": ("copy", 9),
    "copy_search/2026-11-28-amd-epyc-2-cores": ("copy_search", 17),
    "gpt_trials/2026-11-29-intel-xeon-2-cores": ("gpt_trials", 18),
    "lag/2026-11-21-amd-epyc-2-cores": ("lag", 30),
    "multinet/2026-11-22-amd-epyc-2-cores": ("multinet", 6),
    "multinet_search/2026-11-21-amd-epyc-2-cores": ("multinet_search", 6),
    "sparse/2026-11-21-amd-epyc-2-cores": ("sparse", 42),
    "stale/2026-11-21-amd-epyc-2-cores": ("stale", 27),
    "table1_cifar10_cnn/2026-11-21-amd-epyc-2-cores": ("table1", 10),
    "table1_cifar10_fcn/2026-11-21-amd-epyc-2-cores": ("table1", 52),
    "table1_mnist_cnn/2026-11-21-amd-epyc-2-cores": ("table1", 16),
    "unlock/2026-11-21-amd-epyc-2-cores": ("unlock", 15),
    "unlock_search/2026-11-21-amd-epyc-2-cores": ("unlock_search", 9),
}
#: The same of `synthgrad compare`, with layers; with the ``M`` of that time, ``--label-rate 0``.
COMPARISONS = {
    "compare/2026-11-21-amd-epyc-2-cores": (4, 12),
    "compare_3_layers/2026-11-21-amd-epyc-2-cores": (3, 12),
    "compare_rules/2026-11-21-amd-epyc-2-cores": (4, 15),
}

pytestmark = pytest.mark.skipif(not RESULTS.exists(), reason="needs a checkout, with its records")


@pytest.mark.parametrize("folder", EXPERIMENTS)
def test_an_experiment_finds_nothing_to_do(folder: str) -> None:
    name, num = EXPERIMENTS[folder]
    records = read(RESULTS / folder / FILE)[0]
    (tier,) = {r.tier for r in records}
    choice = Choice(methods=tuple({r.method for r in records}))
    runs = experiment_named(name).runs(str(tier), sorted({r.seed or 0 for r in records}), choice=choice)
    declared = {identity(empty_record(run)) for run in runs}
    done = {identity(r) for r in records}
    assert len(done) == num
    assert done <= declared
    assert finished(records) == done


@pytest.mark.parametrize("folder", COMPARISONS)
def test_a_comparison_finds_nothing_to_do(folder: str) -> None:
    layers, num = COMPARISONS[folder]
    records = read(RESULTS / folder / FILE)[0]
    methods, seeds = {r.method for r in records}, sorted({r.seed or 0 for r in records})
    declared = {
        identity(empty_record(r))
        for r in comparison("quick", "mnist", tuple(methods), seeds, layers=layers, label_rate=0.0)
    }
    done = {identity(r) for r in records}
    assert len(done) == num
    assert done == declared

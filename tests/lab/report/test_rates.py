"""Which learning rate is best for a row of language models."""

from __future__ import annotations

from typing import Any

import pytest

from synthgrad.lab.report.rates import chosen_rates
from tests.lab.report.helpers import record, typed
from tests.lab.report.language import gpt_run, late
from tests.lab.report.recurrent import bad


def _at(lr: float, bits: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    return late(1, (bits,), seed, config={"lr": lr}, **more)


_ROW = "delayed (AdamW, 2 modules, delay 1)"


def test_each_row_has_the_rate_with_the_fewest_validation_bits() -> None:
    runs = [_at(0.002, 2.5), _at(0.004, 2.25), _at(0.008, 2.75), gpt_run(config={"lr": 0.016})]
    runs += [_at(0.004, 3.5, modules=4), _at(0.008, 3.0, modules=4)]
    assert chosen_rates(runs) == {
        _ROW: 0.004,
        "backprop (AdamW)": 0.016,
        "delayed (AdamW, 4 modules, delay 1)": 0.008,
    }
    assert chosen_rates(typed(runs)) == chosen_rates(runs)


def test_test_text_chooses_nothing() -> None:
    other = _at(0.008, 2.75)
    other["metrics"]["bits_per_char"] = 0.5
    assert chosen_rates([_at(0.004, 2.5), other]) == {_ROW: 0.004}


def test_of_several_seeds_the_mean_counts_and_of_equal_rates_the_lowest() -> None:
    runs = [_at(0.004, 2.0), _at(0.004, 3.0, 1), _at(0.002, 2.25), _at(0.002, 2.25, 1)]
    assert chosen_rates(runs) == {_ROW: 0.002}
    assert chosen_rates([_at(0.004, 2.0), _at(0.002, 2.0)]) == {_ROW: 0.002}


def test_runs_that_ended_badly_choose_nothing() -> None:
    diverged = bad(_at(0.008, 1.0)) | {"metrics": {"val_bits_per_char": 1.0}}
    assert chosen_rates([diverged, _at(0.004, 2.5)]) == {_ROW: 0.004}
    assert chosen_rates([diverged]) == {}


def test_of_a_run_that_was_recorded_twice_the_last_counts() -> None:
    assert chosen_rates([_at(0.002, 2.0), _at(0.004, 2.5), _at(0.002, 3.0)]) == {_ROW: 0.004}


def test_only_one_setting_can_be_judged() -> None:
    assert chosen_rates([record()]) == {}
    with pytest.raises(ValueError, match="records of 2 settings of language models: expected one text"):
        chosen_rates([_at(0.002, 2.0), _at(0.004, 2.5, steps=60)])

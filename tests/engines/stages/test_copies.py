"""Copies of a stage's state as bytes."""

from __future__ import annotations

import torch

from synthgrad.engines.stages.copies import loaded_state, saved_state


def test_a_state_is_loaded_on_the_device_of_who_loads_it() -> None:
    data = saved_state({"net": {"w": torch.tensor([1.0, 2.0])}, "step": 3})
    here = loaded_state(data, torch.device("cpu"))
    assert here["net"]["w"].tolist() == [1.0, 2.0]
    assert here["step"] == 3
    assert loaded_state(data, torch.device("meta"))["net"]["w"].device.type == "meta"

"""The user's own data: how they are read and converted, and what is refused in one sentence."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import TensorDataset

from synthgrad.core import SynthgradError
from synthgrad.lab.recipes import comparison
from synthgrad.lab.tasks import load
from synthgrad.lab.tasks.own_data import ARRAYS, load_own
from synthgrad.lab.training.sweep import Progress, Sweep
from synthgrad.lab.training.tasks.feed_forward import data_for


def arrays(**other: Any) -> dict[str, Tensor]:
    """Return 6 training and 3 test examples of shape (2, 3), with labels 0 to 2."""
    x = torch.arange(54.0).view(9, 2, 3)
    y = torch.arange(9) % 3
    return {"x_train": x[:6], "y_train": y[:6], "x_test": x[6:], "y_test": y[6:]} | other


def write(path: Path, values: Any) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{k: v.numpy() for k, v in values.items()})
    elif path.suffix == ".pt":
        torch.save(values, path)
    else:
        save_file({k: v.contiguous() for k, v in values.items()}, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_a_file_is_read_as_it_was_written(suffix: str, tmp_path: Path) -> None:
    given = arrays()
    found = load(str(write(tmp_path / f"mine{suffix}", given)))
    assert found.classes == 3
    for part in ("train", "test"):
        split = getattr(found, part)
        assert torch.equal(split.x, given[f"x_{part}"])
        assert torch.equal(split.y, given[f"y_{part}"])
    assert found.sha256 == load_own(str(write(tmp_path / "other.npz", given))).sha256
    changed = arrays(x_test=given["x_test"] + 1)
    assert found.sha256 != load_own(str(write(tmp_path / "other.npz", changed))).sha256


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8), torch.tensor([[0.0, 1.0], [0.2, 0.4]])),
        (torch.tensor([[1, 2], [3, 4]], dtype=torch.int32), torch.tensor([[1, 2], [3, 4]])),
        (torch.tensor([[1.5, 2], [3, 4]], dtype=torch.float64), torch.tensor([[1.5, 2.0], [3.0, 4.0]])),
    ],
)
def test_what_inputs_become(given: Tensor, expected: Tensor, tmp_path: Path) -> None:
    labels = torch.tensor([0, 1])
    values = {"x_train": given, "y_train": labels, "x_test": given, "y_test": labels}
    found = load_own(str(write(tmp_path / "mine.pt", values))).train.x
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str]:
    """Return a function that makes a ``module:factory`` which returns a value, or calls a function."""
    import types

    def make(value: Any) -> str:
        module = types.ModuleType("own_data_module")
        module.make = value if callable(value) else lambda: value  # type: ignore[attr-defined]
        monkeypatch.setitem(__import__("sys").modules, "own_data_module", module)
        return "own_data_module:make"

    return make


def test_the_forms_that_a_factory_may_return(factory: Callable[[Any], str]) -> None:
    given = arrays()
    whole = load_own(factory(given))
    in_order = load_own(factory(tuple(given[k] for k in ARRAYS)))
    numpy = load_own(factory([given[k].numpy() for k in ARRAYS]))
    sets = load_own(
        factory(
            lambda: (
                TensorDataset(given["x_train"], given["y_train"]),
                TensorDataset(given["x_test"], given["y_test"]),
            )
        )
    )
    assert {found.sha256 for found in (in_order, numpy, sets)} == {whole.sha256}


def test_a_module_beside_the_user_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside_me.py").write_text(
        "import torch\ndef make():\n    x, y = torch.rand(4, 2), torch.tensor([0, 1, 0, 1])\n    return x, y, x, y\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load("beside_me:make").train.x.shape == (4, 2)


def _raises() -> None:
    raise OSError("no disk")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (_raises, "OSError: no disk; expected an importable factory that takes no arguments"),
        (lambda n: n, "TypeError"),
        (3, "returned int; expected an importable factory"),
        ((1, 2, 3), "returned tuple"),
        ((1, 2), "train set: TypeError"),
        ("text", "returned str"),
        ({"x_train": torch.ones(2, 2)}, "has no y_train, x_test, y_test; it has x_train, expected x_train"),
        (arrays(y_train=torch.arange(5)), "x_train has 6 examples, y_train 5"),
        (
            arrays(y_train=torch.rand(6)),
            "y_train has shape (6,) and dtype torch.float32, expected integers (N,)",
        ),
        (arrays(y_test=torch.zeros(3, 1).long()), "y_test has shape (3, 1)"),
        (arrays(y_test=torch.tensor([0, 1, 7])), "y_test has the label 7, expected 0 to 2"),
        (
            arrays(y_train=torch.tensor([0, 1, 2, 0, 1, -1])),
            "y_train has the label -1, expected labels from 0 up",
        ),
        (arrays(y_train=torch.zeros(6).long(), y_test=torch.zeros(3).long()), "has the label 0 only"),
        (arrays(x_test=torch.ones(3, 2, 4)), "x_train has examples of shape (2, 3), x_test of (2, 4)"),
        (
            arrays(x_test=torch.ones(3, 2, 3).long()),
            "x_train and x_test have dtypes torch.float32 and torch.int64",
        ),
        (arrays(x_train=torch.full((6, 2, 3), float("nan"))), "x_train has numbers that are not finite"),
        (arrays(x_train=torch.ones(6, 2, 3, dtype=torch.bool)), "x_train has dtype torch.bool"),
        (arrays(x_test=torch.ones(0, 2, 3), y_test=torch.ones(0).long()), "x_test is empty"),
        (arrays(x_train=torch.ones(6)), "x_train has shape (6,), expected (N, ...)"),
        (arrays(x_train=[["a"]]), "x_train is a list that is no array of numbers"),
    ],
)
def test_what_is_refused(made: Any, words: str, factory: Callable[[Any], str]) -> None:
    with pytest.raises(SynthgradError, match=re.escape(words)) as error:
        load_own(factory(made))
    assert "\n" not in str(error.value)


def test_files_that_are_no_data(tmp_path: Path) -> None:
    for suffix in (".npz", ".pt", ".safetensors"):
        path = tmp_path / f"damaged{suffix}"
        with pytest.raises(SynthgradError, match="no such file"):
            load_own(str(path))
        path.write_bytes(b"not what it says")
        with pytest.raises(SynthgradError, match="cannot be read"):
            load_own(str(path))
    np.savez(tmp_path / "objects.npz", x_train=np.array([{}, {}], dtype=object))
    with pytest.raises(SynthgradError, match="cannot be read.*without Python objects"):
        load_own(str(tmp_path / "objects.npz"))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(SynthgradError, match="holds a list, expected a dictionary"):
        load_own(str(tmp_path / "list.pt"))


def test_names_without_a_module() -> None:
    with pytest.raises(SynthgradError, match="ModuleNotFoundError"):
        load("no_such_module_at_all:make")
    with pytest.raises(SynthgradError, match=r"data set 'imagenet' is unknown.*\.safetensors"):
        load("imagenet")


def test_a_factory_that_draws_gives_every_process_the_same(factory: Callable[[Any], str]) -> None:
    def drawn() -> dict[str, Tensor]:
        x = torch.rand(9, 2) + torch.from_numpy(np.random.rand(9, 2)).float()
        y = torch.tensor([random.randrange(3) for _ in range(6)] + [0, 0, 0])
        return {"x_train": x[:6], "y_train": y[:6], "x_test": x[6:], "y_test": y[6:]}

    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = load_own(factory(drawn))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    torch.rand(3), np.random.rand(3), random.random()
    assert load_own(factory(drawn)).sha256 == first.sha256


def test_data_that_have_changed_are_read_anew(tmp_path: Path, factory: Callable[[Any], str]) -> None:
    path = write(tmp_path / "mine.npz", arrays())
    before = data_for(str(path), None, 0, "cpu")
    assert data_for(str(path), None, 0, "cpu") is before
    other = arrays(x_train=arrays()["x_train"] + 1)
    write(path, other)
    os.utime(path, ns=(1, 1))  # another time, even where the clock is coarse
    assert torch.equal(data_for(str(path), None, 0, "cpu").train.x, other["x_train"])
    name = factory(lambda: arrays())
    assert torch.equal(data_for(name, None, 0, "cpu").train.x, arrays()["x_train"])
    factory(lambda: other)
    assert torch.equal(data_for(name, None, 0, "cpu").train.x, other["x_train"])


def test_resume_refuses_runs_on_other_contents_of_the_same_name(tmp_path: Path) -> None:
    given = arrays(x_train=torch.rand(32, 4), y_train=torch.arange(32) % 2)
    given |= {"x_test": torch.rand(8, 4), "y_test": torch.arange(8) % 2}
    path = write(tmp_path / "mine.npz", given)
    runs = comparison("smoke", str(path), ["backprop"], steps=2, batch_size=8, layers=2, width=4)
    (record,) = Sweep(runs, tmp_path / "out").records(Progress())
    assert record.status == "ok", record.error
    assert [r.status for r in Sweep(runs, tmp_path / "out", resume=True).records(Progress())] == ["ok"]
    write(path, given | {"x_test": given["x_test"] + 1})
    os.utime(path, ns=(1, 1))
    with pytest.raises(
        SynthgradError, match=r"has runs on other contents of .*mine\.npz, which has changed since"
    ):
        list(Sweep(runs, tmp_path / "out", resume=True).records(Progress()))

"""Event files: what TensorBoard's own reader finds in them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from synthgrad.lab.training import tensorboard
from synthgrad.lab.training.run import Run
from synthgrad.lab.training.snapshot import run_name
from synthgrad.lab.training.tensorboard import EventWriter, check_installed
from synthgrad.lab.training.train import empty_record, train
from tests.lab.runs import changed, compared

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TensorBoard's own imports


def _config(method: str, folder: Path, **over: object) -> Run:
    made = compared(method, steps=20, batch_size=32, width=16, layers=3, **over)
    return changed(made, monitor_every=2, tensorboard=str(folder))


def _read(folder: Path):  # type: ignore[no-untyped-def]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_scalars_are_those_of_the_curve(tmp_path: Path) -> None:
    config = _config("cdni", tmp_path)
    record = train(config)
    events = _read(tmp_path / run_name(record))
    tags = set(events.Tags()["scalars"])
    assert tags >= {"loss/train", "loss/test", "error_pct/train", "error_pct/test", "elapsed_s"}
    assert tags >= {f"quality {q}/{n}" for q in ("cosine", "relative_error") for n in ("layer1", "layer2")}
    written = [(e.step, e.value) for e in events.Scalars("error_pct/test")]
    assert written == [(p["step"], pytest.approx(p["test_error_pct"])) for p in record["curve"]]
    cosines = [e.value for e in events.Scalars("quality cosine/layer2")]
    assert cosines == [pytest.approx(p["quality"]["layer2"]["cosine"], abs=1e-6) for p in record["curve"]]


def test_graph_and_settings_are_there(tmp_path: Path) -> None:
    record = train(_config("dni", tmp_path))
    events = _read(tmp_path / run_name(record))
    assert events.Tags()["graph"]
    assert any("Linear" in node.name for node in events.Graph().node)
    texts = {
        tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]
    }
    assert "linear M" in texts["decoupled graph/text_summary"]
    assert '"layers": 3' in texts["settings/text_summary"]
    assert texts["status/text_summary"] == "ok"


def test_writing_events_changes_no_result(tmp_path: Path) -> None:
    config = _config("cdni", tmp_path)
    with_events, without = train(config), train(dataclasses.replace(config, tensorboard=None))
    assert with_events["metrics"]["test_loss"] == without["metrics"]["test_loss"]
    assert empty_record(config, 1)["config"] == without["config"]


def test_a_network_that_cannot_be_traced_trains_all_the_same(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("not while tracing")

    record = empty_record(_config("backprop", tmp_path), 1)
    events = EventWriter(tmp_path / "odd", record)
    events.graph(Odd(), torch.ones(2, 3), {"engine": "backprop", "modules": [], "interfaces": []})
    events.close(record)
    text = _read(tmp_path / "odd").Tensors("graph/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == "could not be traced: RuntimeError: not while tracing"


def test_runs_that_differ_have_folders_of_their_own(tmp_path: Path) -> None:
    configs = [_config("cdni", tmp_path), _config("cdni", tmp_path, update_prob=0.5)]
    assert len({run_name(empty_record(c, 1)) for c in configs}) == 2


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'synthgrad\[tensorboard\]'"):
        check_installed()

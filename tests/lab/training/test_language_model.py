"""Runs of a GPT on a text: figures, data that every method shares, and exact resumption."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from synthgrad.core import ConfigError, SynthgradError
from synthgrad.lab.names import TOKENS
from synthgrad.lab.recipes import comparison
from synthgrad.lab.tasks import tokens as known_tokens
from synthgrad.lab.training import trainers
from synthgrad.lab.training.methods import METHODS
from synthgrad.lab.training.payloads import LanguageModel
from synthgrad.lab.training.rehearsal import rehearse_all
from synthgrad.lab.training.run import Run
from synthgrad.lab.training.settings import RuleSettings
from synthgrad.lab.training.snapshot import INTERVAL_VARIABLE
from synthgrad.lab.training.sweep import Progress, Sweep
from synthgrad.lab.training.tasks import LanguageModelTask
from synthgrad.lab.training.train import train
from tests.lab.runs import changed

TINY: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "context": 8, "batch_size": 4}
FOUR: dict[str, Any] = {"layers": 4, "modules": 4}
FITTING = [m.name for m in METHODS.values() if "gpt" not in m.unfit]


def run_of(method: str, **given: Any) -> Run:
    """Return the run of a tiny GPT on the embedded text."""
    made = comparison("smoke", None, [method], arch="gpt", **{**TINY, "steps": 12, **given})[0]
    return changed(made, most_valid=200)


def timeless(record: Mapping[str, Any]) -> dict[str, Any]:
    curve = [{k: v for k, v in point.items() if k != "elapsed_s"} for point in record["curve"]]
    return {k: record[k] for k in ("status", "error", "metrics", "weights_sha256")} | {"curve": curve}


def test_a_record_has_cell_figures_and_settings() -> None:
    record = train(changed(run_of("local_loss", tokens="bpe", vocabulary=300), monitor_every=2))
    assert record["status"] == "ok", record["error"]
    assert record["cell"] == {
        **{"data": "shakespeare-50k", "arch": "gpt", "layers": 2, "width": 16, "heads": 2, "context": 8},
        **{"tokens": "bpe", "vocabulary": 300, "tied": False, "modules": 2, "at": [], "engine": "in-process"},
    }
    metrics, point = record["metrics"], record["curve"][-1]
    assert metrics["tokens_seen"] == point["tokens_seen"] == 12 * 4 * 8
    assert set(metrics) == {
        *("bits_per_char", "test_loss", "val_bits_per_char", "val_loss", "tokens_seen", "num_parameters"),
        "data_sha256",
    }
    assert metrics["val_loss"] == pytest.approx(math.log(300), rel=0.1)  # it has learned little
    assert 1.2 < metrics["val_loss"] / math.log(2) / metrics["val_bits_per_char"] < 3  # characters in a token
    assert set(point["quality"]) == {"block1"}
    assert record["config"]["rule"]["head"] == "tokens"
    assert record["config"]["optimizer"] == "AdamW"
    assert record["graph"]["interfaces"][0]["shape"] == [8, 16]


def test_bits_of_the_training_part_are_of_the_mean_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    task = LanguageModelTask(run_of("backprop", tokens="bpe", vocabulary=300))
    task.set_up()
    task.begin(0)
    losses = [torch.tensor(1.0), torch.tensor(2.0)]
    task._losses = list(losses)
    point = task.evaluate(2)
    assert point["train_loss"] == 1.5
    assert point["train_bits_per_char"] == pytest.approx(
        1.5 / math.log(2) / task.text.characters_per_token.train
    )
    assert task.text.characters_per_token.train != task.text.characters_per_token.valid
    assert task._losses == []


def test_the_loss_of_an_example_is_the_mean_over_its_tokens() -> None:
    scores = torch.randn(3, 5, 7, dtype=torch.float64)
    targets = torch.randint(0, 7, (3, 5))
    each = trainers.TokenCrossEntropy(reduction="none")(scores, targets)
    expected = [torch.nn.functional.cross_entropy(s.float(), y) for s, y in zip(scores, targets, strict=True)]
    torch.testing.assert_close(each, torch.stack(expected))
    torch.testing.assert_close(trainers.TokenCrossEntropy()(scores, targets), each.mean())


def test_names_of_tokens_are_those_that_texts_know() -> None:
    assert tuple(known_tokens.TOKENS) == TOKENS


def test_every_method_has_the_same_windows_and_first_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    true = LanguageModelTask.step

    def listen(task: LanguageModelTask) -> bool:
        seen.setdefault(task.run.method, []).append(task.windows.batch(task._next)[0])
        return true(task)

    monkeypatch.setattr(LanguageModelTask, "step", listen)
    figures: dict[str, float] = {}
    for method in FITTING:
        record = train(run_of(method, steps=3, lr=1e-30))
        assert record["status"] == "ok", (method, record["error"])
        figures[method] = record["metrics"]["val_loss"]
    assert figures == pytest.approx(dict.fromkeys(FITTING, figures["backprop"]), rel=1e-6)
    for method in FITTING:
        assert len(seen[method]) == 3
        assert all(torch.equal(a, b) for a, b in zip(seen[method], seen["backprop"], strict=True))
    assert not torch.equal(*seen["backprop"][:2])
    train(dataclasses.replace(run_of("backprop", steps=1), seed=1))
    assert not torch.equal(seen["backprop"][-1], seen["backprop"][0])


@pytest.mark.parametrize("method", [m for m in METHODS if m not in FITTING])
def test_methods_that_do_not_fit_say_why(method: str) -> None:
    with pytest.raises(
        ConfigError, match=f"method '{method}' is not for --arch gpt: .*; use one of backprop"
    ):
        run_of(method)


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("delayed", {"delay": 0}),
        ("interlocked", {}),  # the module above the only cut has the criterion
        ("delayed", {"delay": 0, "optimizer": "muon"}),
        ("delayed", {"delay": 0, "accumulate": 4}),
    ],
)
def test_what_is_backpropagation_ends_where_it_does(method: str, given: dict[str, Any]) -> None:
    shared = {k: v for k, v in given.items() if k in ("optimizer", "accumulate")}
    plain, cut = train(run_of("backprop", **shared)), train(run_of(method, **given))
    assert cut["status"] == "ok", cut["error"]
    assert cut["metrics"]["val_loss"] == pytest.approx(plain["metrics"]["val_loss"], rel=1e-5)
    late = train(run_of("delayed", delay=2, **shared))
    assert abs(late["metrics"]["val_loss"] / plain["metrics"]["val_loss"] - 1) > 1e-5


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("backprop", {"optimizer": "muon", "lr_warm_up": 5, "cosine": True}),
        ("backprop", {"accumulate": 4}),
        ("delayed", {"delay": 3, "optimizer": "muon", "error_feedback": True}),
        ("delayed", {"delay": 3, "accumulate": 4, "versions": 2, "steps": 16}),
        ("local_loss", {}),
        ("late_correction", {"delay": 3}),
        ("interlocked", FOUR),
        ("head_gradient", {"delay": 1}),
        ("sobolev", {}),
        ("cdni", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_a_stopped_run_goes_on_to_the_same_end(
    method: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INTERVAL_VARIABLE, "0")
    monkeypatch.setattr(LanguageModelTask, "chunk", 3)
    config = changed(run_of(method, **given), eval_every=6, monitor_every=2)
    whole = train(config)
    assert (whole["status"], whole["error"]) == ("ok", None)
    kept = dataclasses.replace(config, snapshots=str(tmp_path))

    def stop(done: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(kept, stop)
    record = train(kept)
    assert record["resumed_at"] == [9]
    assert timeless(record) == timeless(whole)


def test_the_engine_gets_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    true = trainers.InProcess

    def listen(*args: Any, **options: Any) -> Any:
        given.update(options)
        return true(*args, **options)

    monkeypatch.setattr(trainers, "InProcess", listen)
    LanguageModelTask(run_of("delayed", delay=3, accumulate=4, versions=1)).set_up()
    assert (given["accumulate"], given["versions"]) == (4, 1)
    assert {name: lag.observe for name, lag in given["lags"].items()} == {"block1": 3}
    given.clear()
    LanguageModelTask(changed(run_of("local_loss", layers=4, at=("block1", "block3")), modules=None)).set_up()
    assert set(given["lags"]) == {"block1", "block3"}
    assert not {"accumulate", "versions"} & set(given)


def test_heads_have_as_many_private_blocks_as_are_asked_for() -> None:
    sizes = {}
    for blocks in (0, 1, 2):
        task = LanguageModelTask(run_of("local_loss", blocks=blocks))
        task.set_up()
        assert task.graph is not None
        sizes[blocks] = task.graph["interfaces"][0]["num_parameters"]
    block = 4 * 16 * 16 + 2 * 4 * 16 * 16 + 5 * 16 + 4 * 16
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == block


def test_the_correction_has_its_weight() -> None:
    task = LanguageModelTask(run_of("late_correction", weight=0.25))
    task.set_up()
    assert task.graph is not None
    assert "weight=0.25" in task.graph["interfaces"][0]["rule"]


@pytest.mark.parametrize("method", ["backprop", "late_correction", "cdni"])
def test_half_precision_is_a_little_off(method: str) -> None:
    whole, half = (train(run_of(method, precision=name)) for name in ("float32", "bfloat16"))
    assert half["status"] == "ok", half["error"]
    assert half["config"]["precision"] == "bfloat16"
    ratio = half["metrics"]["val_loss"] / whole["metrics"]["val_loss"]
    assert 1e-6 < abs(ratio - 1) < 2e-2


def test_more_training_helps() -> None:
    record = train(run_of("local_loss", steps=150, batch_size=8, lr=1e-2))
    assert record["metrics"]["bits_per_char"] < 4.5  # a character at random takes 5.9


# Texts of one's own


def test_a_text_that_has_changed_is_read_anew_and_not_resumed_on(tmp_path: Path) -> None:
    text = tmp_path / "my.txt"
    text.write_text("the quick brown fox\n" * 50)
    run = dataclasses.replace(
        run_of("backprop", steps=2), payload=LanguageModel(data=f"text:{text}", context=8)
    )
    run = changed(run, modules=None, engine="plain", width=16)
    (first,) = Sweep([run], tmp_path / "out").records(Progress())
    (again,) = Sweep([run], tmp_path / "out", resume=True).records(Progress())
    assert (again["status"], again["metrics"]) == ("ok", first["metrics"])
    text.write_text("the lazy old dog\n" * 60)
    os.utime(text, ns=(1, 1))
    with pytest.raises(ConfigError, match="has runs on other contents of text:.*my.txt, which has changed"):
        list(Sweep([run], tmp_path / "out", resume=True).records(Progress()))
    assert train(run)["metrics"]["data_sha256"] != first["metrics"]["data_sha256"]


def test_what_cannot_begin_is_told_before_anything_is_written(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("abc " * 30)
    for given, words in (
        ({"data": str(short), "context": 200}, "context of 200: expected 1 to 107"),
        ({"data": str(tmp_path / "none.txt")}, "neither a known text nor a file"),
        ({"at": ("block9",), "modules": None}, "no submodule of that name"),
        ({"delay": 5, "accumulate": 4, "versions": 2}, "no gradient may be more than one update late"),
        (
            {"method": "sobolev", "rule": RuleSettings(head="tokens")},
            "'sobolev' with 1 private blocks.* --blocks 0",
        ),
    ):
        with pytest.raises(SynthgradError, match=words):
            rehearse_all([changed(run_of("delayed"), **given)])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"engine": "layer-parallel"},
            "engine 'layer-parallel' with a GPT: expected one of in-process, plain, stages",
        ),
        ({"modules": 9}, "9 modules of 4 blocks: expected 2 to 4"),
        ({"modules": 1}, "1 modules of 4 blocks"),
        ({"heads": 0}, "heads 0: expected at least 1"),
        ({"context": 0}, "context 0: expected at least 1"),
        ({"arch": "fcn"}, "network 'fcn' on a text: expected gpt"),
    ],
)
def test_payloads_that_cannot_be(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LanguageModel(data="shakespeare-50k", **given)


@pytest.mark.parametrize(
    ("method", "given", "words"),
    [
        (
            "backprop",
            {"error_feedback": True},
            "error feedback with backprop: only the engine in-process or stages has this",
        ),
        ("backprop", {"versions": 2}, "versions of the weights with backprop"),
        ("local_loss", {"engine": "plain", "error_feedback": True}, "error feedback with the plain engine"),
    ],
)
def test_what_the_plain_loop_has_not(method: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        changed(run_of(method), **given)


def test_no_message_is_late_in_the_plain_loop() -> None:
    with pytest.raises(ConfigError, match="method 'delayed' with a delay of 1 in the plain loop"):
        LanguageModelTask(changed(run_of("delayed"), engine="plain")).set_up()
    record = train(changed(run_of("local_loss"), engine="plain"))
    assert (record["status"], record["error"]) == ("ok", None)

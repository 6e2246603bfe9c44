"""What makes the documents' shell lines short enough to run: small data, two steps, few runs, few methods."""

from __future__ import annotations

import gzip
import pickle
import shutil
import struct
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click import Context, Group

from synthgrad.lab.bench import base
from synthgrad.lab.bench.base import choose
from synthgrad.lab.bench.declaration import Declaration, Scope
from synthgrad.lab.cli.main import cli
from synthgrad.lab.recipes import Experiment
from synthgrad.lab.tasks.cifar import FOLDER, OFFICIAL_MD5
from synthgrad.lab.tasks.text import SHA256
from synthgrad.lab.training.run import Run

__all__ = ["ROOT", "cut_runs", "provide", "shortened", "stand_ins"]

ROOT = Path(__file__).parent.parent

#: Appended to a command, where it has the option: the last one wins, so names and options are still proven.
SHORT = {
    "--tier": "smoke",
    "--seeds": "0",
    "--device": "cpu",
    "--threads": "1",
    "--jobs": "1",
    "--quiet": None,
    "--rounds": "1",
}
#: Of a command, or of a command and its first argument.
SHORTER = {
    "compare": {"--steps": "2", "--width": "16"},
    "bench": {"--layers": "3", "--width": "16", "--batch-size": "32"},
    "bench pipeline": {"--layers": "5", "--batch-size": "8"},
    "bench absence": {"--rounds": "24"},
}
#: A link that nobody waits for long: pipelines are timed over ten round trips and more.
FAST_LINK = "rtt_ms=1,mbit_s=1000"
#: Of a benchmark's methods, the last ones are measured, beside the reference; of memory each has a process of its own.
NUM_METHODS = {"memory": 1, "pipeline": 2}


def stand_ins(folder: Path) -> Path:
    """Write small files in the forms of MNIST, CIFAR-10 and the texts below a folder; return the folder.

    Every line runs on them, with or without the real data, whose readers have tests of their own.
    """
    rng = np.random.default_rng(0)
    (folder / "mnist").mkdir()
    for part, n in (("train", 1000), ("t10k", 100)):
        for kind, array in (
            ("images-idx3", rng.integers(0, 256, (n, 28, 28), np.uint8)),
            ("labels-idx1", (np.arange(n) % 10).astype(np.uint8)),
        ):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / "mnist" / f"{part}-{kind}-ubyte.gz").write_bytes(
                gzip.compress(head + array.tobytes(), 1)
            )
    (folder / FOLDER).mkdir()
    for name in OFFICIAL_MD5:
        images, labels = rng.integers(0, 256, (200, 3072), np.uint8), [k % 10 for k in range(200)]
        (folder / FOLDER / name).write_bytes(pickle.dumps({b"data": images, b"labels": labels}, 2))
    (folder / "text").mkdir()
    text = files("synthgrad.lab.tasks").joinpath("embedded/shakespeare_50k.txt").read_bytes()
    for name in SHA256:
        (folder / name).write_bytes(text[:20_000])
    return folder


def provide(words: Sequence[str], folder: Path, data: Path) -> None:
    """Put what the command reads into the working directory."""
    values = dict(zip(words, words[1:], strict=False))
    if "--data-dir" in values:
        (folder / values["--data-dir"]).symlink_to(data.resolve())
    if (file := folder / values.get("--data", "")).suffix == ".npz":  # which a program of the page writes
        x, y = np.random.default_rng(0).normal(size=(1200, 8)).astype(np.float32), np.arange(1200) % 3
        np.savez(file, x_train=x[:1000], y_train=y[:1000], x_test=x[1000:], y_test=y[1000:])
    if words[1] == "report":
        for name in [w for k, w in enumerate(words[2:], 2) if "--out" not in (w, words[k - 1])]:
            shutil.copytree(next((ROOT / "results/compare").iterdir()), folder / name)


def cut_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an experiment have one run of each method, of two steps; and a benchmark few lines, of short turns."""
    all_runs = Experiment.runs

    def few_runs(self: Experiment, *args: Any, **options: Any) -> list[Run]:
        runs = {run.method: run for run in reversed(all_runs(self, *args, **options))}
        return [
            replace(
                run,
                payload=replace(run.payload, width=16),
                schedule=replace(run.schedule, steps=2, eval_every=2),
            )
            for run in reversed(runs.values())
        ]

    def few_methods(declared: Declaration, *args: Any, **options: Any) -> Scope:
        scope = choose(declared, *args, **options)
        kept = scope.methods[-NUM_METHODS.get(declared.name, len(scope.methods)) :]
        one = {"unrolls": scope.unrolls[:1]} if hasattr(scope, "unrolls") else {}
        return replace(scope, methods=kept, seconds=0.01, **one)

    monkeypatch.setattr(Experiment, "runs", few_runs)
    monkeypatch.setattr(base, "choose", few_methods)


def shortened(words: Sequence[str]) -> list[str]:
    """Return the options that cut a command short, of those that it has."""
    command = cli.get_command(Context(cli), words[0])
    if isinstance(command, Group):
        command = command.get_command(Context(command), words[1])
    if command is None or {"--help", "-h"} & set(words):
        return []
    known = {option for parameter in command.params for option in parameter.opts}
    extra = SHORT | SHORTER.get(words[0], {}) | SHORTER.get(" ".join(words[:2]), {})
    if words[0] == "run" and {"--data", "--layers", "--unroll"} & set(words):
        del extra[
            "--tier"
        ]  # what is named here may be in the line's own tier only; `cut_runs` cuts all short
    if "lstm" in words:
        del extra["--layers"]  # recurrent networks have one
    if words[:2] == ["bench", "networks"]:
        del extra["--batch-size"]  # it is small
    if words[1:2] == ["memory"] and "--unroll" in words:
        extra = extra | {"--unroll": "4"}  # has to divide the horizon of 8
    if "--link" in words:
        extra = extra | {"--link": FAST_LINK}
    if "--model" in words or words[:2] == ["bench", "codecs"]:  # which has no so narrow ones
        extra = {option: value for option, value in extra.items() if option != "--width"}
    return [w for o, v in extra.items() if o in known for w in ([o] if v is None else [o, v])]

"""The program as it is started: by module and by script, its name, its version, its help."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import synthgrad
from synthgrad.lab.cli.main import cli
from synthgrad.lab.training.machine import describe_environment, device_name
from synthgrad.version import __version__
from tests.lab.cli.helpers import call

SCRIPT = shutil.which("synthgrad", path=str(Path(sys.executable).parent))
STARTS = [
    pytest.param([sys.executable, "-m", "synthgrad"], id="module"),
    pytest.param(
        [SCRIPT or ""],
        id="script",
        marks=pytest.mark.skipif(SCRIPT is None, reason="needs the package installed with its script"),
    ),
]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    ("arguments", "status", "out", "error"),
    [
        (["--help"], 0, r"\AUsage: synthgrad \[OPTIONS\] COMMAND", r"\A\Z"),
        (["bench", "--help"], 0, r"\AUsage: synthgrad bench ", r"\A\Z"),
        ([], 2, r"\AUsage: synthgrad ", r"\A\Z"),
        (
            ["train"],
            2,
            r"\A\Z",
            r"\Asynthgrad: error: No such command 'train'; accepted: compare, run, .*\n\Z",
        ),
        (["bench"], 2, r"\A\Z", r"\Asynthgrad: error: Missing argument 'NAME'; accepted: step, .*\n\Z"),
    ],
    ids=["help", "help of a command", "nothing", "no command", "no name"],
)
def test_module_and_script_are_the_same(
    start: list[str], arguments: list[str], status: int, out: str, error: str
) -> None:
    done = subprocess.run(
        [*start, *arguments], capture_output=True, text=True, timeout=60, check=False, encoding="utf-8"
    )
    assert done.returncode == status
    assert re.search(out, done.stdout)
    assert re.search(error, done.stderr)


def test_version_names_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    name, pytorch, device = capsys.readouterr().out.rstrip("\n").split(" · ")
    assert (name, pytorch) == (f"synthgrad {__version__}", f"torch {torch.__version__}")
    if torch.cuda.is_available():
        assert device == torch.cuda.get_device_name()
    else:
        assert device == f"{device_name('cpu')} (cpu)"


def test_the_device_is_the_one_of_the_records() -> None:
    assert describe_environment("cpu")["device"] == device_name("cpu")
    assert device_name("cpu").strip()


@pytest.mark.parametrize("name", list(cli.commands))
def test_options_say_what_they_are_and_what_holds_without_them(name: str) -> None:
    for option in cli.commands[name].params:
        if option.param_type_name == "argument":
            continue
        words = getattr(option, "help", None) or ""
        assert words.endswith("."), option.name
        assert words[0].isupper() or words.split()[0] in ("in-process", "eager,"), option.name
        shown = getattr(option, "show_default", False)
        free = option.name in ("model",) or getattr(option, "is_flag", False)
        # Either click shows the default, or the words do where it depends on something else.
        assert free or shown != ("[default: " in words), option.name


# The package itself, whose names are loaded when they are asked for


def test_every_public_name_is_there() -> None:
    assert {n: getattr(synthgrad, n) for n in synthgrad.__all__}
    assert synthgrad.decouple is synthgrad.core.decouple
    assert synthgrad.SyntheticGradient is synthgrad.rules.SyntheticGradient
    assert synthgrad.context is synthgrad.core.context
    assert set(synthgrad.__all__) <= set(dir(synthgrad))
    scope: dict[str, object] = {}
    exec("from synthgrad import *", scope)
    assert set(synthgrad.__all__) <= set(scope)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="'synthgrad' has no attribute 'Cut'"):
        synthgrad.Cut  # noqa: B018

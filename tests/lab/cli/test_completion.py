"""Completion by the shells' own protocol: what is offered, and that PyTorch is not loaded for it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from synthgrad.lab import names as lab_names
from synthgrad.lab.bench.declarations import BENCHMARKS
from synthgrad.lab.recipes import experiments
from synthgrad.lab.tasks import DATASETS, TEXTS
from synthgrad.lab.training.methods import METHODS
from synthgrad.lab.training.recurrent_methods import RECURRENT_METHODS
from tests.lab.cli.helpers import call

#: As ``synthgrad`` does it, and a word at the end if PyTorch was loaded on the way.
PROGRAM = (
    "import sys, atexit; from synthgrad.lab.cli.main import main; "
    "atexit.register(lambda: print('LOADED') if 'torch' in sys.modules else None); main()"
)


def ask(shell: str, words: str, at: str) -> list[str]:
    """Return what the command answers to a shell."""
    asked = {"_SYNTHGRAD_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": at}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout.strip("\n").splitlines()


def offered(line: str) -> list[str]:
    """Return what bash is offered for the last word of a line, which is empty after a space."""
    items = ask("bash", line, str(len(line.split(" ")) - 1))
    assert all(item.startswith("plain,") for item in items), items
    return [item.removeprefix("plain,") for item in items]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("synthgrad ", ["compare", "run", "bench", "plan", "store", "report", "list"]),
        ("synthgrad re", ["report"]),
        ("synthgrad --debug li", ["list"]),
        ("synthgrad run ", list(experiments())),
        ("synthgrad run dn", ["dni_search"]),
        ("synthgrad bench ", list(BENCHMARKS)),
        ("synthgrad bench step --mo", ["--modes"]),
        ("synthgrad compare --data ", [*DATASETS, *TEXTS]),
        ("synthgrad compare --data c", ["cifar10"]),
        ("synthgrad compare --methods ", list(METHODS)),
        ("synthgrad compare --methods cdni,", [f"cdni,{m}" for m in METHODS if m != "cdni"]),
        ("synthgrad compare --methods dni,cdni,no", ["dni,cdni,no_bprop"]),
        ("synthgrad compare --methods backprop,backprop", []),
        ("synthgrad compare --tier ", ["smoke", "quick", "full"]),
        ("synthgrad compare --device ", ["auto", "cpu", "cuda"]),
        ("synthgrad compare --engine ", ["in-process", "layer-parallel", "plain", "stages"]),
        ("synthgrad compare --debug --quiet --engine p", ["plain"]),
        ("synthgrad run dni_search --tier q", ["quick"]),
        (
            "synthgrad run table1 --data mnist,",
            ["mnist,mnist-10k", "mnist,cifar10", "mnist,ptb", "mnist,shakespeare", "mnist,shakespeare-50k"],
        ),
        ("synthgrad run table1 --arch fcn,", ["fcn,cnn", "fcn,gpt"]),
        ("synthgrad run table1 --methods st", ["stale"]),
        ("synthgrad run table1 --precision b", ["bfloat16"]),
        ("synthgrad bench step --methods d", ["dni", "delayed", "dni_unlock"]),
        ("synthgrad bench memory --methods backprop,c", ["backprop,checkpointing"]),
        ("synthgrad bench faults --methods ", ["killed", "frozen", "raises"]),
        ("synthgrad bench faults --tier ", ["smoke", "quick"]),
        ("synthgrad bench memory --arch ", ["fcn", "lstm"]),
        ("synthgrad bench step --modes eager,", ["eager,compiled"]),
    ],
)
def test_what_is_offered(line: str, expected: list[str]) -> None:
    assert offered(line) == expected


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("synthgrad compare --out ", "dir"),
        ("synthgrad bench step --data-dir ", "dir"),
        ("synthgrad report ", "file"),
    ],
)
def test_paths_are_left_to_the_shell(line: str, kind: str) -> None:
    assert ask("bash", line, str(len(line.split(" ")) - 1)) == [f"{kind},"]


def test_zsh_and_fish_are_answered_in_their_forms() -> None:
    assert ask("zsh", "synthgrad compare --methods dni,n", "3") == ["plain", "dni,no_bprop", "_"]
    assert ask("fish", "synthgrad compare --methods dni,n", "dni,n") == ["plain,dni,no_bprop"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shells_scripts(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("needs bash")
    monkeypatch.setenv("_SYNTHGRAD_COMPLETE", f"{shell}_source")
    assert call() == 0
    shown = capsys.readouterr()
    assert f"_SYNTHGRAD_COMPLETE={shell}_complete" in shown.out
    assert shown.err == ""
    if shell == "fish":  # a value is split from its kind at the first comma only
        assert 'string split --max 1 "," $completion' in shown.out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_real_bash_completes_a_list(tmp_path: Path) -> None:
    command = tmp_path / "synthgrad"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m synthgrad "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    script = """
    eval "$(_SYNTHGRAD_COMPLETE=bash_source synthgrad)"
    complete -p synthgrad
    COMP_WORDS=(synthgrad compare --methods backprop,no_bprop,lo) COMP_CWORD=3
    _synthgrad_completion synthgrad
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env=os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    registered, *completed = done.stdout.splitlines()
    assert registered == "complete -o nosort -F _synthgrad_completion synthgrad"
    assert completed == ["backprop,no_bprop,local_loss"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["bench", "step", "--help"], ["bench", "nothing"], ["nothing"], ["compare", "--nix"]],
)
def test_help_and_errors_of_usage_do_not_load_pytorch(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == (0 if "--help" in arguments else 2)
    assert "LOADED" not in done.stdout


def test_the_names_are_those_of_what_does_the_work() -> None:
    assert tuple(METHODS) == tuple(lab_names.METHODS)
    assert tuple(RECURRENT_METHODS) == tuple(lab_names.RECURRENT)
    assert tuple(DATASETS) == tuple(lab_names.DATA)
    assert tuple(TEXTS) == tuple(lab_names.TEXTS)

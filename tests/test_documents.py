"""What the documents say works: their code runs, their commands exist, their links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pooch
import pytest
from click import Context

from synthgrad.cli.main import cli
from synthgrad.experiments.config import RunConfig
from synthgrad.experiments.links import available
from synthgrad.experiments.methods import METHODS
from synthgrad.experiments.registry import EXPERIMENTS
from synthgrad.records.names import METHODS as NAMES
from tests.cli.helpers import call

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
LANGUAGES = {"python", "shell", "text"}

#: Appended to a command, where it has the option: the last one wins, so names and options are still proven.
SHORT = {
    "--tier": "smoke",
    "--seeds": "0",
    "--device": "cpu",
    "--threads": "1",
    "--quiet": None,
    "--rounds": "2",
}
SHORTER = {
    "compare": {"--steps": "2", "--width": "16"},
    "bench": {"--layers": "3", "--width": "16", "--batch-size": "32"},
}

#: Lines of shell blocks that are not `synthgrad`, and where CI runs what they do.
ELSEWHERE = {
    "make demo": "its command, `synthgrad compare`, is a line of these pages too; every step of CI uses its environment",
    "make test": "the step 'tests' of .ci/run",
    "make docs": "the step 'documents' of .ci/run",
    "make tables": "the step 'documents agree with the records' of .ci/run, as a check",
    "make lint types": "the steps 'lint' and 'types' of .ci/run",
    "bash .ci/run": "that is CI",
    "python -m venv .venv": "the step 'wheel' of .ci/run, in another folder",
    ". .venv/bin/activate": "the step 'wheel' of .ci/run calls the environment's programs by their paths",
    "pip install .": "the step 'wheel' of .ci/run installs what this builds",
    'pip install ".[tensorboard]"': "the step 'environment' of .ci/run: the extra is part of [test]",
    "tensorboard --logdir runs/watched/tensorboard": "a server; tests/experiments/test_tensorboard.py reads what it shows",
    "python -m pytest tests/engines/test_contract.py": "the step 'tests' of .ci/run",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; one with a title is a file of that name."""

    page: Path
    line: int
    language: str
    title: str | None
    code: str


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```([^\n`]*)\n(.*?)^\1``` *$", text, re.DOTALL | re.MULTILINE):
        info = found[2]
        title = re.search(r'title="([^"]+)"', info)
        code = textwrap.dedent(found[3])
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, (info.split() or [""])[0], title[1] if title else None, code)


def prose(page: Path) -> str:
    return re.sub(
        r"^( *)```.*?^\1``` *$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )


def shell_lines() -> list[tuple[Path, str]]:
    """Return every line of a shell block once, with its page; a comment after two spaces is left out."""
    lines = [
        (page, re.split(r"\s\s+#", line)[0].strip())
        for page in PAGES
        for block in blocks(page)
        if block.language == "shell"
        for line in block.code.splitlines()
    ]
    return list(dict.fromkeys(found for found in lines if found[1]))


LINES = [found for found in shell_lines() if "_SYNTHGRAD_COMPLETE=" not in found[1]]
COMPLETION = [line for _, line in shell_lines() if "_SYNTHGRAD_COMPLETE=" in line]


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what a page adds to the registries is taken out again."""

    def refuse(*args: Any, **kwargs: Any) -> str:
        raise OSError("no network in tests")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    tables: list[Any] = [METHODS, EXPERIMENTS, NAMES]
    before = [dict(t) for t in tables]
    modules = set(sys.modules)
    yield tmp_path
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)
    for module in set(sys.modules) - modules:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[module]


def write_files(page: Path, folder: Path) -> None:
    for block in blocks(page):
        if block.title:
            (folder / block.title).write_text(block.code, encoding="utf-8")


# Third parties that the pages show (Fabric, Accelerate, the compiler) warn of their own deprecations.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b.language == "python" for b in blocks(p))], ids=name
)
def test_python_blocks_run_in_order(page: Path, empty_folder: Path) -> None:
    write_files(page, empty_folder)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python" and not block.title:
            code = "\n" * block.line + block.code  # so that a traceback shows the line of the page
            exec(compile(code, str(page), "exec"), names)


@pytest.mark.parametrize(("page", "line"), LINES, ids=lambda v: name(v) if isinstance(v, Path) else v)
def test_shell_line_runs(page: Path, line: str, empty_folder: Path) -> None:
    if line in ELSEWHERE:
        return
    words = shlex.split(line, comments=True)
    assert words[0] == "synthgrad", f"{name(page)}: nothing says where CI runs {line!r}; add it to ELSEWHERE"
    data = os.environ.get("SYNTHGRAD_DATA")
    if {"mnist", "cifar10", "ptb", "shakespeare"} & set(words) and not data:
        pytest.skip("needs MNIST, CIFAR-10 or a text: a folder with their files in SYNTHGRAD_DATA")
    if "--link" in words and (reason := available()):
        pytest.skip(f"no link can be emulated here: {reason}")
    if "cifar10" in words and not (Path(str(data)) / "cifar-10-batches-py").is_dir():
        pytest.skip("needs CIFAR-10: its standard folder under SYNTHGRAD_DATA")
    write_files(page, empty_folder)
    provide(words, empty_folder)
    assert call(*words[1:], *shortened(words[1:])) == 0


def provide(words: list[str], folder: Path) -> None:
    """Put what the command reads into the working directory, and cut an experiment's runs short."""
    values = dict(zip(words, words[1:], strict=False))
    if "--data-dir" in values:
        (folder / values["--data-dir"]).symlink_to(Path(os.environ["SYNTHGRAD_DATA"]).resolve())
    if words[1] == "report":
        for name in [w for k, w in enumerate(words[2:], 2) if "--out" not in (w, words[k - 1])]:
            shutil.copytree(next((ROOT / "results/compare").iterdir()), folder / name)
    if words[1] == "run":
        whole = EXPERIMENTS[words[2]]

        def first_steps(*arguments: Any) -> list[RunConfig]:
            return [
                replace(
                    run,
                    cell=replace(run.cell, width=16),
                    schedule=replace(run.schedule, steps=2, eval_every=2),
                )
                for run in whole.configs(*arguments)
            ]

        EXPERIMENTS[words[2]] = replace(whole, configs=first_steps)  # `empty_folder` puts it back


def shortened(words: list[str]) -> list[str]:
    """Return the options that cut a command short, of those that it has."""
    command = cli.get_command(Context(cli), words[0])
    if command is None or {"--help", "-h"} & set(words):
        return []
    known = {option for parameter in command.params for option in parameter.opts}
    extra = SHORT | SHORTER.get(words[0], {})
    if words[0] == "run" and {"--data", "--layers", "--unroll"} & set(words):
        del extra["--tier"]  # what is named here may be in the line's own tier only; `provide` cuts all short
    if words[:2] == ["bench", "unroll"] or "lstm" in words:
        del extra["--layers"]  # recurrent networks have one
    if words[1:2] == ["memory"] and "--unroll" in words:
        extra = extra | {"--unroll": "4"}  # has to divide the horizon of 8
    if "--stages" in words:
        extra = extra | {"--layers": "5"}  # four stages have a hidden layer each
    if "--model" in words:
        extra = {option: value for option, value in extra.items() if option != "--width"}
    return [w for o, v in extra.items() if o in known for w in ([o] if v is None else [o, v])]


def test_no_line_is_listed_for_nothing() -> None:
    assert set(ELSEWHERE) <= {line for _, line in LINES}


def test_completion_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert COMPLETION
    for line in COMPLETION:
        shell = re.search(r"_SYNTHGRAD_COMPLETE=(\w+)_source synthgrad", line)
        assert shell, line
        if shell[1] == "bash" and shutil.which("bash") is None:
            continue  # click asks bash for its version
        monkeypatch.setenv("_SYNTHGRAD_COMPLETE", f"{shell[1]}_source")
        assert call() == 0
        assert "_SYNTHGRAD_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_are_of_a_language_that_is_tested(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{name(page)}, line {block.line}: ```{block.language}"
    assert not re.search(r"^(?: {4}|\t)\$?\s*synthgrad ", prose(page), re.MULTILINE), "indented: fence it"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = prose(page)
    targets = re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)
    if page.parent != ROOT / "docs" or page.name != "contributing.md":
        targets += re.findall(r"^\[[^\]]+\]: (?!https?:)(\S+)", text, re.MULTILINE)
    for target in targets:
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), f"{name(page)} links to {target}"
        if anchor and found.suffix == ".md" and found.parent.name != "api":
            assert anchor in anchors(found), f"{name(page)} links to {target}"


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ +(.+?)\s*$", prose(page), re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_figures_in_tables_come_from_records(page: Path) -> None:
    """A table is filled from records, between markers, or it holds no measured figure."""
    by_hand = re.sub(r"<!-- (?:table|grid) \S+.*?<!-- end -->", "", prose(page), flags=re.DOTALL)
    for row in re.findall(r"^\|.*$", by_hand, re.MULTILINE):
        measured = re.search(r"\d\s?(%|m?s\b|[KMG]i?B\b|bytes|per second)|\d\.\d+ ×", row)
        assert not measured, f"{name(page)}: {row}"


def test_every_picture_is_shown() -> None:
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", prose(page))
    }
    assert {p.resolve() for p in (ROOT / "docs/pictures").iterdir()} == shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebook_is_kept_without_outputs(path: Path) -> None:
    """The build of the site runs it; an error in it ends the build."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None

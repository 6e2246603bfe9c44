"""What the documents say works: their code runs, their commands exist, their links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pooch
import pytest

from synthgrad.lab.bench import base
from synthgrad.lab.cli import work
from synthgrad.lab.names import METHODS as NAMES
from synthgrad.lab.training.methods import METHODS
from synthgrad.lab.training.run import Run
from synthgrad.lab.wan import unavailable_reason
from tests.lab.cli.helpers import call
from tests.short_lines import ROOT, cut_runs, provide, shortened, stand_ins

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
LANGUAGES = {"python", "shell", "text", "diff"}  # tests/lab/test_worked_examples.py applies the diffs

#: Lines of shell blocks that are not `synthgrad`, and where CI runs what they do.
ELSEWHERE = {
    "make demo": "its command, `synthgrad compare`, is a line of these pages too; every step of CI uses its environment",
    "make test": "the step 'tests, the short suite without data' of .ci/run",
    "make test-all": "two steps of .ci/run, 'tests, the short suite without data' and 'tests, the rest', which together are all",
    "make docs": "the step 'documents' of .ci/run",
    "make tables": "the step 'documents agree with the records' of .ci/run, as a check",
    "make lint types": "the steps 'lint' and 'types' of .ci/run",
    "bash .ci/run": "that is CI",
    "python -m venv .venv": "the step 'wheel' of .ci/run, in another folder",
    ". .venv/bin/activate": "the step 'wheel' of .ci/run calls the environment's programs by their paths",
    'pip install ".[lab]"': "the step 'wheel' of .ci/run installs what this builds, with the extra",
    'pip install ".[tensorboard]"': "the step 'environment' of .ci/run: the extra is part of [test]",
    "tensorboard --logdir runs/watched/tensorboard": "a server; tests/lab/training/test_tensorboard.py reads what it shows",
    "python -m pytest tests/engines/test_contract.py": "the step 'tests, the short suite without data' of .ci/run",
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
    tables: list[Any] = [METHODS, NAMES]
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
    "page",
    [
        # That guide trains its rules in every engine.
        pytest.param(p, id=name(p), marks=[pytest.mark.documents] if p.name == "write-a-rule.md" else [])
        for p in PAGES
        if any(b.language == "python" for b in blocks(p))
    ],
)
def test_python_blocks_run_in_order(page: Path, empty_folder: Path) -> None:
    write_files(page, empty_folder)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python" and not block.title:
            code = "\n" * block.line + block.code  # so that a traceback shows the line of the page
            exec(compile(code, str(page), "exec", dont_inherit=True), names)  # as a reader would run it


every_line = pytest.mark.parametrize(
    ("page", "line"),
    [found for found in LINES if found[1] not in ELSEWHERE],
    ids=lambda v: name(v) if isinstance(v, Path) else v,
)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files in place of the real data sets: a line runs with data and without."""
    return stand_ins(tmp_path_factory.mktemp("data"))


@pytest.fixture
def words(
    page: Path, line: str, empty_folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The words of a line, whose files lie in the working directory."""
    words = shlex.split(line, comments=True)
    assert words[0] == "synthgrad", f"{name(page)}: nothing says where CI runs {line!r}; add it to ELSEWHERE"
    if "--link" in words and words[1] != "plan" and (reason := unavailable_reason()):
        pytest.skip(f"no link can be emulated here: {reason}")
    monkeypatch.setenv("SYNTHGRAD_DATA", str(data))
    write_files(page, empty_folder)
    provide(words, empty_folder, data)
    return words


@every_line
@pytest.mark.filterwarnings("ignore:.*not the (official|usual):UserWarning")
def test_shell_line_is_understood(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, as it stands: the runs or settings that it asks for are made, and not started."""
    made: list[Any] = []

    def train(configs: Sequence[Run], *args: Any, **options: Any) -> int:
        made.extend(configs)
        return 0

    def sweep(benchmark: Any, scope: Any, *args: Any, **options: Any) -> Iterator[Any]:
        made.extend(benchmark.settings(scope))
        return iter(())

    monkeypatch.setattr(work, "_train", train)
    monkeypatch.setattr(base, "sweep", sweep)
    assert call(*words[1:]) == 0
    assert made or words[1] in ("list", "plan", "report")


@every_line
@pytest.mark.documents
@pytest.mark.filterwarnings("ignore:.*not the (official|usual):UserWarning")
def test_shell_line_runs(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cut_runs(monkeypatch)
    assert call(*words[1:], *shortened(words[1:])) == 0


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
    by_hand = re.sub(r"<!-- (?:table|grid|steps) \S+.*?<!-- end -->", "", prose(page), flags=re.DOTALL)
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

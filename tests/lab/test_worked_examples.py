"""The guide's worked examples: how many files they touch, and that a tree changed so does what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import synthgrad

PACKAGE = Path(synthgrad.__file__).parent
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "write-an-experiment.md"

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="needs a checkout, with its documents")


def block(language: str) -> str:
    """Return the only block of a language in the guide."""
    (found,) = re.findall(
        rf"^```{language}.*\n((?:(?!```).*\n)*)```$", GUIDE.read_text(encoding="utf-8"), re.M
    )
    return found


def hunks(diff: str) -> Iterator[tuple[str, list[str]]]:
    """Yield path and lines of each file of a diff without line numbers."""
    for part in re.split(r"^--- a/", diff, flags=re.M)[1:]:
        path, _, rest = part.partition("\n")
        yield path, rest.splitlines()[2:]  # behind +++ and @@


def changed_tree(folder: Path) -> Path:
    """Return a copy of the package with the guide's diff in it."""
    copy = folder / "synthgrad"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for path, lines in hunks(block("diff")):
        file = copy.parent / Path(path).relative_to("src")
        text = file.read_text(encoding="utf-8")
        before = "".join(f"{line[1:]}\n" for line in lines if line[0] == " ")
        after = "".join(f"{line[1:]}\n" for line in lines)
        assert text.count(before) == 1, f"{path}: {before!r}"
        file.write_text(text.replace(before, after), encoding="utf-8")
    return folder


def call(tree: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "synthgrad", *words],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_method_takes_three_files_and_a_setting_two_of_them() -> None:
    touched = dict(hunks(block("diff")))
    assert len(touched) == 3
    of_the_setting = [path for path, lines in touched.items() if any("bottleneck" in line for line in lines)]
    assert len(of_the_setting) == 2


@pytest.mark.slow(reason="starts the program twice, each of which loads PyTorch")
def test_the_changed_tree_has_the_method_with_its_option(tmp_path: Path) -> None:
    tree = changed_tree(tmp_path)
    assert "  cdni_narrow      cdni with one narrow hidden layer in M" in call(tree, "list")
    small = ("--tier", "smoke", "--steps", "3", "--layers", "3", "--width", "8", "--device", "cpu", "--quiet")
    call(tree, "compare", "--methods", "cdni_narrow", "--bottleneck", "5", *small, "--out", "out")
    text = (tree / "out" / "results.jsonl").read_text()
    assert '"bottleneck": 5' in text
    assert "SyntheticGradient(M with hidden 5, 10 classes)" in text


@pytest.mark.slow(reason="starts the program, which loads PyTorch")
def test_an_experiment_is_one_file_in_a_checkout_too(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "synthgrad", ignore=shutil.ignore_patterns("__pycache__"))
    guide = GUIDE.read_text(encoding="utf-8")
    (module,) = re.findall(r'^```python title="where_to_cut.py"\n((?:(?!```).*\n)*)```$', guide, re.M)
    (tmp_path / "synthgrad/lab/recipes/where_to_cut.py").write_text(module, encoding="utf-8")
    assert "  where_to_cut     cDNI with one cut or three\n" in call(tmp_path, "list")

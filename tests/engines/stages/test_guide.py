"""The program of the guide, started by torchrun as the guide says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDES = Path(__file__).parents[3] / "docs/guides"


@pytest.mark.documents
@pytest.mark.parametrize(
    ("page", "before", "prints"),
    [
        ("stages.md", "This is `train.py`:", r"loss \d\.\d+, 32 predictions, \d+ bytes sent"),
        ("slow-links.md", "the second machine needs no data.", r"loss \d\.\d+, window \d+, \d+ bytes up"),
    ],
)
def test_the_program_of_the_guide_runs(page: str, before: str, prints: str, tmp_path: Path) -> None:
    text = " ".join(before.split())
    block = re.search(
        re.escape(text).replace(r"\ ", r"\s") + r"\n\n```python\n(.*?)```",
        (GUIDES / page).read_text(),
        re.DOTALL,
    )
    assert block
    (tmp_path / "train.py").write_text(block[1])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, "train.py", "20"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(prints, done.stdout), done.stdout

"""The program of the guide, started by torchrun as the guide says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs/guides/stages.md"


@pytest.mark.documents
def test_the_program_of_the_guide_runs(tmp_path: Path) -> None:
    block = re.search(r"This is `train.py`:\n\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block
    (tmp_path / "train.py").write_text(block[1])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, "train.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"loss \d\.\d+, 32 predictions, \d+ bytes sent", done.stdout), done.stdout

"""Every example is a short program that runs by itself, downloads nothing, and has checked something true at its end."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

EXAMPLES = Path(__file__).parents[2] / "examples"
#: By name of the program: the packages that it needs beside the library.
NEEDS: dict[str, tuple[str, ...]] = {
    "vision": (),
    "language_model": ("transformers", "accelerate"),
    "lightning_trainer": ("lightning",),
    "accelerate_loop": ("accelerate",),
    "two_stages": (),
}

pytestmark = pytest.mark.skipif(
    not EXAMPLES.is_dir(), reason="needs a checkout or a source distribution, which hold the examples"
)


def test_every_example_is_here_and_short() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(NEEDS)
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, path.name


@pytest.mark.slow(reason="programs that each load PyTorch, and some a framework")
@pytest.mark.parametrize("name", NEEDS)
def test_it_runs_and_what_it_checks_holds(name: str, tmp_path: Path) -> None:
    for package in NEEDS[name]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package} (extra: examples)")
    program = [str(EXAMPLES / f"{name}.py")]
    command = [sys.executable, *program]
    if name == "two_stages":
        if not dist.is_gloo_available():
            pytest.skip("needs a PyTorch with gloo")
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            *program,
        ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hub"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "ok: with the true gradient every weight is that of backpropagation"
    assert any("gradient" in line or "losses" in line for line in lines[:-1])
    assert not [path for path in tmp_path.iterdir() if path.name != "hub"], "it leaves files behind"

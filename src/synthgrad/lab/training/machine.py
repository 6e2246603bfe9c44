"""The machine that a run is on: what to record of it, and the settings that every method gets alike."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ...core import ConfigError
from ...version import __version__

__all__ = ["choose_device", "configure_process", "describe_environment", "device_name", "synchronize"]


def choose_device(name: str) -> str:
    """Return ``cpu`` or ``cuda`` for ``cpu``, ``cuda`` or ``auto``.

    Raises:
        ConfigError: if CUDA is asked for and not there, or the name is unknown.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: this PyTorch sees no CUDA device; install a CUDA build, or use --device cpu"
        )
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: expected cpu, cuda or auto")
    return name


def configure_process(threads: int | None) -> None:
    """Fix the number of threads, and keep freed memory inside the process.

    glibc hands the memory of a step's activations back to the kernel at the end of the step and takes
    it again, page by page, in the next, which small networks notice. Every method gets this setting.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(option, 1 << 30)


def synchronize(device: str) -> None:
    """Wait until the device has done what was asked of it; nothing to wait for on a CPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def describe_environment(device: str, jobs: int = 1) -> dict[str, Any]:
    """Return the ``env`` of a record."""
    commit, dirty = _commit()
    return {
        "synthgrad": __version__,
        "commit": commit,
        "dirty": dirty,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "jobs": jobs,
    }


def device_name(device: str) -> str:
    """Return the name of the CUDA device, or of the processor, as it is known in shops."""
    return torch.cuda.get_device_name() if device == "cuda" else _processor()


@cache
def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@cache
def _commit() -> tuple[str | None, bool | None]:
    """Return the commit that the package runs from, and whether its sources differ from it."""
    here = Path(__file__).parent

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *args], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", "machine.py") is None:
        return None, None  # installed, or inside somebody else's repository
    return git("rev-parse", "--short=12", "HEAD"), bool(git("status", "--porcelain", "--", str(here.parent)))

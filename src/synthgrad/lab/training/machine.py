"""The machine of a run: its description for records, and process settings that are the same for every method."""

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
    """Return ``cpu`` or ``cuda``; ``auto`` chooses CUDA if it is available.

    Raises:
        ConfigError: if the name is unknown, or it is ``cuda`` and CUDA is not available.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: PyTorch finds no CUDA device; install a CUDA build of PyTorch, or use --device cpu"
        )
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: expected cpu, cuda or auto")
    return name


def configure_process(threads: int | None) -> None:
    """Set the number of threads, and keep freed memory in the process.

    By default glibc returns the memory of activations to the kernel at the end of a step, and gets it back page by page
    in the next one, which slows small networks down. All methods are timed with this setting.

    Args:
        threads: number of CPU threads; None for PyTorch's default.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(option, 1 << 30)


def synchronize(device: str) -> None:
    """Wait until the device has finished its work; return at once on a CPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def describe_environment(device: str, jobs: int = 1) -> dict[str, Any]:
    """Return the ``env`` of a record: versions, commit, device and threads.

    Args:
        device: ``cpu`` or ``cuda``.
        jobs: number of runs in parallel.
    """
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
    """Return the product name of the CUDA device or of the processor."""
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
    """Return the commit of the package's source, and whether the files differ from it; None if it is not known."""
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
        return None, None  # the package is installed, or lies inside another repository
    return git("rev-parse", "--short=12", "HEAD"), bool(git("status", "--porcelain", "--", str(here.parent)))

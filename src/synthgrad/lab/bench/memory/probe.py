"""Measuring memory: every line in a process of its own, so that nothing is left of another."""

from __future__ import annotations

import ctypes
import multiprocessing
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from statistics import median
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ...training.machine import synchronize
from ...records import Record
from ..base import finish_line
from ..turns import reason_of
from .held_bytes import HeldBytes

__all__ = ["Memory", "measured", "probe"]


class Job(Protocol):
    """What one process measures."""

    @property
    def method(self) -> str: ...
    @property
    def device(self) -> str: ...


JobT = TypeVar("JobT", bound=Job)


def measured(
    jobs: Sequence[JobT],
    lines: Sequence[Record],
    observe: Callable[[JobT], dict[str, Any]],
    reference: str,
) -> Iterator[Record]:
    """Yield the finished lines, each from a process of its own.

    Args:
        jobs: one for each line.
        lines: their records, all but the figures.
        observe: measures a job, in its process.
        reference: the method that others are compared with; its line comes first.
    """
    known: dict[str, Any] | None = None
    for job, line in zip(jobs, lines, strict=True):
        error = None
        metrics: dict[str, Any] = {}
        try:
            metrics = _in_own_process(observe, job)
        except BrokenProcessPool:
            error = "its process died without a word; the machine may be out of memory"
        except Exception as failure:  # a peer that fails is a line that says so
            error = reason_of(failure)
        if job.method == reference:
            known = metrics or None
        if metrics and known:
            metrics |= {
                name: metrics[key] / known[key]
                for name, key in (
                    (f"ratio_to_{reference}", "saved_bytes_peak"),
                    (f"ratio_peak_to_{reference}", "peak_bytes"),
                    (f"ratio_step_to_{reference}", "step_ms_median"),
                )
                if metrics[key] is not None and known[key]
            }
        yield finish_line(line, job.device, metrics, error)


def _in_own_process(observe: Callable[[JobT], dict[str, Any]], job: JobT) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(observe, job).result()


def probe(step: Callable[[], object], alive: Sequence[Tensor], memory: Memory, rounds: int) -> dict[str, Any]:
    """Return the bytes held in one step, and time and highest memory of others before it.

    Args:
        step: what is measured.
        alive: tensors that are not counted: parameters, buffers, the batch.
        memory: made before the network was.
        rounds: steps to time.
    """
    step()  # Adam makes its state, PyTorch its buffers
    memory.start()
    times: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        synchronize(memory.device)
        times.append(time.perf_counter() - start)
    peak = memory.peak()
    with HeldBytes(alive) as held:
        step()
    return {"saved_bytes_peak": held.peak, "peak_bytes": peak, "step_ms_median": median(times) * 1e3}


def _load_pytorch(device: torch.device) -> None:
    """Run something tiny: what PyTorch loads at first use is nobody's cost."""
    layer = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).to(device)
    optimizer = torch.optim.Adam(layer.parameters(), 1e-3, fused=True)
    layer(torch.ones(4, 4, device=device)).sum().backward()
    optimizer.step()


class Memory:
    """Peak memory: of the process on a CPU (Linux only), of PyTorch's allocator on CUDA.

    Made before the network is, so that parameters and optimizer state count; started when it is set up.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        _load_pytorch(torch.device(device))
        self._cuda = device == "cuda"
        self._before = torch.cuda.memory_allocated() if self._cuda else _status_bytes("VmRSS")
        self._known = True

    def start(self) -> None:
        """Forget the highest memory so far, and give back what the set-up freed."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        try:
            # The high-water mark starts again from what is resident now.
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # another system, or not allowed
            self._known = False

    def peak(self) -> int | None:
        """Return the most bytes since the start, over those at the making; None where nobody knows."""
        top = torch.cuda.max_memory_allocated() if self._cuda else _status_bytes("VmHWM")
        return None if top is None or self._before is None or not self._known else top - self._before


def _status_bytes(name: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None

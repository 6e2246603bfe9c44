"""Measuring memory: every line in a process of its own, so that nothing is left of another."""

from __future__ import annotations

import ctypes
import multiprocessing
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...training.machine import synchronize
from ..base import Bench, CaseT, Figures, ScopeT, SizeT, reason_of
from ..turns import median_and_spread
from .held_bytes import HeldBytes

__all__ = ["Memory", "OwnProcessBench", "in_own_process", "probe"]


#: Ratios to the reference, and what they are taken of.
_RATIOS = {"ratio": "saved_bytes_peak", "ratio_peak": "peak_bytes", "ratio_step": "step_ms_median"}


class OwnProcessBench(Bench[ScopeT, SizeT, CaseT]):
    """A benchmark whose every line is measured in a process of its own.

    Attributes:
        reference: the method that the others are compared with; its line comes first.
        observe: takes scope, size and case, and measures in the process that calls it; a function of a module. What it has
            compared itself stays.
    """

    reference: ClassVar[str]
    observe: ClassVar[Callable[..., dict[str, Any]]]

    def is_reference(self, size: SizeT, case: CaseT) -> bool:
        """Return whether the other lines of the size are compared with this one."""
        return self.method(size, case) == self.reference

    def measure(self, scope: ScopeT, size: SizeT, cases: Sequence[CaseT]) -> Iterator[Figures]:
        known: Mapping[str, Any] = {}
        for case in cases:
            found = self._measured(scope, size, case)
            if self.is_reference(size, case):
                known = found.metrics
            yield Figures(self._compared(found.metrics, known), found.error)

    def _measured(self, scope: ScopeT, size: SizeT, case: CaseT) -> Figures:
        try:
            return Figures(in_own_process(type(self).observe, scope, size, case))
        except BrokenProcessPool:
            return Figures(error="its process died without a word; the machine may be out of memory")
        except Exception as error:  # a case that fails is a line that says so
            return Figures(error=reason_of(error))

    def _compared(self, found: Mapping[str, Any], known: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the figures, with their ratios to those of the reference."""
        ratios = {
            f"{name}_to_{self.reference}": found[key] / known[key]
            for name, key in _RATIOS.items()
            if found.get(key) is not None and known.get(key)
        }
        return {**ratios, **found}


def in_own_process(observe: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Call a function in a process that is started for it; return what it returns."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(observe, *args).result()


def probe(
    step: Callable[[], object], alive: Sequence[Tensor], memory: Memory, rounds: int, settle: int = 1
) -> dict[str, Any]:
    """Return the most bytes held in some steps, and time and highest memory of others before them.

    Args:
        step: what is measured.
        alive: tensors that are not counted: parameters, buffers, the batch.
        memory: made before the network was.
        rounds: steps to time.
        settle: steps after which every step is like the one before. Graphs that are kept over steps are counted if all of
            them begin within so many.
    """
    for _ in range(settle):
        step()  # Adam makes its state, PyTorch its buffers
    memory.start()
    times: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        synchronize(memory.device)
        times.append((time.perf_counter() - start) * 1e3)
    peak = memory.peak()
    with HeldBytes(alive) as held:
        for _ in range(settle):
            step()
    middle, p10, p90 = median_and_spread(times)
    spread = {"step_ms_median": middle, "step_ms_p10": p10, "step_ms_p90": p90}
    return {"saved_bytes_peak": held.peak, "peak_bytes": peak, **spread}


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

"""What an engine over gloo takes from its process, and gives back: threads, descriptors, memory, listening sockets."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from synthgrad.engines import Stages
from tests.engines.stages import programs
from tests.engines.stages.places import Place
from tests.engines.stages.processes import Processes

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc: a Linux machine")


def _num_threads_and_descriptors() -> tuple[int, int]:
    gc.collect()
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def _one_after_another(place: Place, count: int, raises: bool) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for _ in range(count):
        try:
            with Stages(programs.network(2, "cdni"), programs.per_example, programs.adam, window=2) as stages:
                for x, y in programs.batches(3):
                    stages.step(x if place.rank == 0 else None, y)
                if raises:
                    raise ValueError("enough")
                stages.gather()
        except (ValueError, RuntimeError):
            assert raises
        found.append(_num_threads_and_descriptors())
    return found


@pytest.mark.slow(reason="makes and closes twenty pipelines of processes, twice")
@pytest.mark.parametrize("raises", [False, True])
def test_twenty_engines_leave_neither_threads_nor_descriptors(two_processes: Processes, raises: bool) -> None:
    for found in two_processes.run(_one_after_another, 20, raises):
        # What PyTorch keeps for good, such as its pool of threads, is there after a few. Gloo may be about to close one.
        threads, descriptors = found[-1]
        assert threads <= found[4][0], found
        assert descriptors <= found[4][1] + 1, found


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _ragged(place: Place, steps: int) -> dict[str, Any]:
    """Train on batches of all sizes; return the growth over the second half, and the receives that lie ready."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(2, 400, (steps,), generator=generator).tolist()
    net = programs.network(2, "cdni")
    before = 0
    with Stages(net, programs.per_example, programs.adam, window=8) as stages:
        for step, size in enumerate(sizes):
            if step == steps // 2:
                before = _resident_bytes()
            x = torch.randn(size, programs.INPUTS, generator=generator, dtype=torch.float64)
            y = torch.randint(programs.CLASSES, (size,), generator=generator)
            stages.step(x if place.rank == 0 else None, y)
        grown = _resident_bytes() - before
        posted = [link.incoming.receiver.num_posted for link in stages._links.links]  # pyright: ignore
    return {"grown": grown, "posted": posted}


def test_batches_of_all_sizes_leave_no_receives_behind(two_processes: Processes) -> None:
    for found in two_processes.run(_ragged, 500):
        # For eight sizes at most, and so many as the window lets be under way.
        assert sum(found["posted"]) <= 8 * 11
        assert found["grown"] < 8 << 20, found  # 0.45 MiB a step once, so over 100 MiB


def _listening(place: Place) -> list[str]:
    """Return the addresses at which this process listens while an engine lives, as /proc has them."""
    with Stages(programs.network(2, "cdni"), programs.per_example, programs.adam) as stages:
        stages.step(programs.batches(1)[0][0] if place.rank == 0 else None, programs.batches(1)[0][1])
        own: set[str] = set()
        for number in os.listdir("/proc/self/fd"):
            try:
                own |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(f"/proc/self/fd/{number}")))
            except OSError:
                continue  # that of the listing
        found: list[str] = []
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and words[9] in own:
                    found.append(words[1].split(":")[0])
    return found


def test_nothing_listens_to_a_network(two_processes: Processes) -> None:
    first, second = two_processes.run(_listening)
    assert set(first) == set(second) == {"0100007F"}  # 127.0.0.1
    # The store in rank 0; gloo's group of all, and the engine's groups, in both. Peers listen while they meet only.
    assert (len(first), len(second)) == (3, 2)

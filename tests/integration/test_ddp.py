"""A decoupled network under DistributedDataParallel, in two real processes over gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.integration.ddp_worker import make, train

WORKER = Path(__file__).with_name("ddp_worker.py")


@pytest.mark.slow(reason="starts two processes, each of which loads PyTorch")
@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs a PyTorch with gloo")
def test_two_processes_equal_one_with_the_whole_batch(tmp_path: Path) -> None:
    command = [sys.executable, str(WORKER)]
    workers = [
        subprocess.Popen(
            [*command, str(rank), "2", str(tmp_path / "rendezvous"), str(tmp_path / "weights")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=120)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    net, batches = make()
    train(net, batches, slice(None))
    for rank in range(2):
        theirs = torch.load(tmp_path / f"weights.{rank}", weights_only=True)
        for name, value in net.state_dict().items():
            assert torch.allclose(value, theirs[name], rtol=1e-10), f"'{name}' differs on rank {rank}"

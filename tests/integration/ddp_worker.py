"""One of two processes that train the same decoupled network on halves of every batch.

Usage: python ddp_worker.py RANK WORLD INIT_FILE OUT. Not a test: `test_ddp.py` starts it.
"""

from __future__ import annotations

import gc
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import synthgrad as sg


def make() -> tuple[sg.core.Decoupled, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return the network and its batches, the same in every process."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    batches = [(torch.randn(8, 6, dtype=torch.float64), torch.randint(0, 3, (8,))) for _ in range(8)]
    net = sg.decouple(model, ["1", "3"], sg.SyntheticGradient((5,), context=3, norm=False), batches[0][0])
    return net, batches


def train(net: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]], part: slice) -> None:
    """The plain loop, on a part of every batch."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(net(x[part], context=y[part]), y[part]).backward()
        optimizer.step()


def main(rank: int, world: int, init_file: str, out: str) -> None:
    """Train under DDP and save the weights of this process."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{init_file}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    net, batches = make()
    size = 8 // world
    parallel = DistributedDataParallel(net)
    train(parallel, batches, slice(rank * size, (rank + 1) * size))
    torch.save(net.state_dict(), f"{out}.{rank}")
    # In this order, and together: gloo's threads end the program with `terminate` if what uses them outlives
    # the group, or if a peer closes its connections while they still write.
    del parallel
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])

"""The handshake: all processes must have the same network, cut in the same places, and the same settings."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import Store

from ...core import ConfigError, StageError
from .alarm import Alarm
from .layout import Groups, Layout

__all__ = ["agree", "describe", "round_trips", "told"]

_PINGS = 5


def describe(model: nn.Module) -> list[str]:
    """Return a line for every parameter and buffer of a network: name, shape, dtype."""
    return [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in model.state_dict().items()]


def agree(store: Store, alarm: Alarm, facts: Mapping[str, Any], timeout_s: float) -> list[dict[str, Any]]:
    """Tell the others what this process is about to run, and check that they are too. Blocks until all have.

    Args:
        store: shared by all.
        alarm: rung for them if this process fails meanwhile.
        facts: JSON values. What stands under ``"same"`` must be equal everywhere, the rest may differ.
        timeout_s: how long to wait for the others, in seconds.

    Returns:
        The facts of all processes, by rank.

    Raises:
        ConfigError: naming the first thing in which two processes differ.
        StageError: if some do not come.
    """
    store.set(f"hello/{dist.get_rank()}", json.dumps(facts))
    found: list[dict[str, Any]] = [
        told(store, alarm, f"hello/{k}", timeout_s, f"rank {k} did not come to the handshake")
        for k in range(dist.get_world_size())
    ]
    first = found[0]["same"]
    for other, theirs in enumerate(found):
        for key, value in first.items():
            if theirs["same"].get(key) != value:
                raise ConfigError(
                    f"rank 0 and rank {other} differ in {key}: {_difference(value, theirs['same'].get(key))}; "
                    "start all processes with the same program and settings"
                )
    return found


def told(store: Store, alarm: Alarm, key: str, timeout_s: float, otherwise: str) -> Any:
    """Return the JSON value that some process has put into the store, or will soon.

    Raises:
        StageError: saying ``otherwise`` if it does not come in time; or with the cause, if a process has stopped.
    """
    until = time.monotonic() + timeout_s
    while not store.check([key]):
        alarm.check()
        if time.monotonic() > until:
            raise StageError(f"{otherwise} within {timeout_s:g} s; do all processes build the engine?")
        time.sleep(0.02)
    return json.loads(store.get(key))


def _difference(a: Any, b: Any) -> str:
    if isinstance(a, list) and isinstance(b, list):
        for one, two in zip(a, b, strict=False):
            if one != two:
                return f"{one} against {two}"
        return f"{len(a)} entries against {len(b)}"
    return f"{a} against {b}"


def round_trips(layout: Layout, groups: Groups, device: torch.device) -> float:
    """Return the round trip to the stage above, in seconds, 0 for the last stage. Blocks; all must call it."""

    def tensor(group: dist.ProcessGroup) -> torch.Tensor:
        return torch.zeros(
            1, dtype=torch.int64, device=device if dist.get_backend(group) == "nccl" else "cpu"
        )

    if groups.up_below is not None and groups.down_below is not None:
        peer, ball = layout.rank(layout.stage - 1), tensor(groups.up_below)
        for _ in range(_PINGS + 1):
            dist.recv(ball, peer, group=groups.up_below)
            dist.send(ball, peer, group=groups.down_below)
    if groups.up_above is None or groups.down_above is None:
        return 0.0
    peer, ball = layout.rank(layout.stage + 1), tensor(groups.up_above)
    times: list[float] = []
    for _ in range(_PINGS + 1):
        start = time.perf_counter()
        dist.send(ball, peer, group=groups.up_above)
        dist.recv(ball, peer, group=groups.down_above)
        int(ball.item())  # on an accelerator: when it is there
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first makes the connection

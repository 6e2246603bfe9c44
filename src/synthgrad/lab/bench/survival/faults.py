"""``bench faults``: one rank of a run on stages dies, freezes or raises, and the others are watched.

Every line is a run of two or three processes over gloo. At a moment one of them is killed, stopped, or raises; what is
measured is how long it takes until all others have ended, or gone on, and what they say.

The ranks' program reaches these moments by hooks around functions of the engine.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ....core import decouple
from ....engines import Stages
from ....engines.stages import connect as connecting
from ....engines.stages import join
from ....rules import SyntheticGradient
from ..base import Bench, Figures
from ..declarations import FAULTS_BENCH, FaultsScope

__all__ = ["BENCHMARK", "MOMENTS", "FaultCase", "FaultsBench"]

#: How long a stage waits for another, in seconds; after how long a run that has not ended counts as hanging; and how long
#: its processes may take to begin.
TIMEOUT_S, _HANGS_S, _LOADS_S = 3.0, 20.0, 120.0

#: Steps of a run, and the one in the middle of which the fault happens.
_STEPS, _AT_STEP = 8, 4

_WIDTH, _BATCH, _CLASSES = 16, 8, 4

MOMENTS = ("handshake", "making groups", "measuring links", "mid-step", "closing")

#: What a rank says that knows nothing better.
_NO_CAUSE = ("nobody has said why", "gloo", "third_party", "Connection closed", "processes at both ends live")


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultCase:
    """A run, and what happens in it.

    Attributes:
        stages: number of processes.
        rank: rank to which it happens.
        moment: moment at which it happens.
        fault: what happens.
        seed: seed, as recorded.
    """

    stages: int
    rank: int
    moment: str
    fault: str
    seed: int = 0


@dataclass(slots=True)
class _Rank:
    """What became of one rank of a run.

    Attributes:
        ended_s: seconds from the fault to the end of its engine, well or by an error; None if it has not ended.
        has_exited: whether its process has ended.
        said: its error; empty if there was none.
    """

    ended_s: float | None = None
    has_exited: bool = False
    said: str = ""


class FaultsBench(Bench[FaultsScope, FaultCase, str]):
    """Stages of small fully connected layers with cDNI; ``timeout_s`` of 3 s."""

    declared = FAULTS_BENCH
    optimizer = ""

    def sizes(self, scope: FaultsScope) -> Iterable[FaultCase]:
        for seed, stages, moment, fault in itertools.product(
            scope.seeds, scope.stages, MOMENTS, scope.methods
        ):
            for rank in range(stages):
                yield FaultCase(stages=stages, rank=rank, moment=moment, fault=fault, seed=seed)

    def cases(self, scope: FaultsScope, size: FaultCase) -> Sequence[str]:
        return (size.fault,)

    def cell(self, scope: FaultsScope, size: FaultCase, case: str) -> Mapping[str, Any]:
        return {"stages": size.stages, "rank": size.rank, "moment": size.moment, "fault": size.fault}

    def config(self, scope: FaultsScope, size: FaultCase, case: str) -> Mapping[str, Any]:
        return {"timeout_s": TIMEOUT_S, "backend": "gloo", "rule": "cdni, linear M"}

    def label(self, scope: FaultsScope, size: FaultCase) -> str:
        return f"{size.stages} stages, rank {size.rank} {size.fault}, {size.moment}"

    def measure(self, scope: FaultsScope, size: FaultCase, cases: Sequence[str]) -> Iterator[Figures]:
        others = {rank: watched for rank, watched in enumerate(_outcome(size)) if rank != size.rank}
        hanging = [rank for rank, w in others.items() if w.ended_s is None or not w.has_exited]
        sentences = list(dict.fromkeys(watched.said for watched in others.values() if watched.said))
        error = None
        if hanging:
            error = f"rank {', '.join(map(str, hanging))} had not ended after {_HANGS_S:g} s"
        elif untold := [s for s in sentences if any(words in s for words in _NO_CAUSE)]:
            error = f"no cause was told: {untold[0]}"
        elif not sentences:
            error = "the others have noticed nothing"
        metrics = {
            "others_ended_s": max((w.ended_s or _HANGS_S for w in others.values()), default=None),
            "sentence": " │ ".join(sentences) or None,
        }
        yield Figures(metrics, error)


def _outcome(case: FaultCase) -> list[_Rank]:
    """Run a case; return what became of its ranks."""
    context = multiprocessing.get_context("forkserver")
    # PyTorch is loaded once, and its compiler, which optimizers load at their first step.
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ends: dict[Any, int] = {}
    processes: list[Any] = []
    for rank in range(case.stages):
        end, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run_rank, args=(theirs, case, rank, port), daemon=True)
        process.start()
        theirs.close()
        ends[end] = rank
        processes.append(process)
    try:
        return _watched(case, ends, processes)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _watched(case: FaultCase, ends: dict[Any, int], processes: list[Any]) -> list[_Rank]:
    began: float | None = None
    ranks = [_Rank() for _ in processes]
    waiting: dict[Any, int] = {p.sentinel: rank for rank, p in enumerate(processes) if rank != case.rank}
    until = time.monotonic() + _LOADS_S
    while waiting and time.monotonic() < until:
        for ready in wait([*ends, *waiting], 0.1):
            if ready in waiting:
                ranks[waiting.pop(ready)].has_exited = True
        for end, rank in list(ends.items()):
            try:
                while end.poll():
                    word, at, said = end.recv()
                    if word == "fault":
                        began, until = at, at + _HANGS_S
                    else:
                        ranks[rank].ended_s, ranks[rank].said = at, said
            except (EOFError, OSError):
                del ends[end]
    for one in ranks:
        one.ended_s = None if one.ended_s is None or began is None else one.ended_s - began
    return ranks


# -- in the processes of a run ----------------------------------------------------------------------------


def _run_rank(end: Connection, case: FaultCase, rank: int, port: int) -> None:
    """Train a stage; tell what it ended with."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(case.stages),
        "LOCAL_WORLD_SIZE": str(case.stages),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    join("gloo", timeout_s=60.0)
    dist.barrier()
    try:
        _train(case, rank, partial(_break, end, case.fault) if rank == case.rank else None)
    except Exception as error:
        end.send(("ended", time.monotonic(), str(error)))
    else:
        end.send(("ended", time.monotonic(), ""))
    finally:
        dist.destroy_process_group()


def _break(end: Connection, fault: str) -> None:
    end.send(("fault", time.monotonic(), ""))
    if fault == "raises":
        raise OSError("no space left on device")
    os.kill(os.getpid(), signal.SIGKILL if fault == "killed" else signal.SIGSTOP)


def _train(case: FaultCase, rank: int, happens: Callable[[], None] | None) -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.ReLU()) for _ in range(case.stages - 1)]
    model = nn.Sequential(*layers, nn.Linear(_WIDTH, _CLASSES))
    data = [(torch.randn(_BATCH, _WIDTH), torch.randint(_CLASSES, (_BATCH,))) for _ in range(_STEPS)]
    cuts = [str(k) for k in range(case.stages - 1)]
    net = decouple(model, cuts, SyntheticGradient(context=_CLASSES, learned_table=True), data[0][0])
    if happens is not None:
        _hook(case.moment, happens)
    adam = partial(torch.optim.Adam, lr=1e-3)
    with Stages(net, nn.CrossEntropyLoss(), adam, window=2, timeout_s=TIMEOUT_S) as trainer:
        for step, (x, y) in enumerate(data):
            if happens is not None and case.moment == "mid-step" and step == _AT_STEP:
                trainer.module.register_forward_pre_hook(lambda *_: happens())
            trainer.step(x if rank == 0 else None, y)


def _hook(moment: str, happens: Callable[[], None]) -> None:
    """Have it happen in place of what begins at a moment."""
    from ....engines.stages.transport import gloo, process_group

    places: dict[str, tuple[Any, str]] = {
        "handshake": (connecting, "handshake"),
        "making groups": (gloo.GlooTransport, "_connect"),
        "measuring links": (process_group.GroupLines, "round_trip_s"),
        "closing": (connecting.StageLinks, "close"),
    }
    if moment in places:
        owner, name = places[moment]
        before = getattr(owner, name)

        def hooked(*args: Any, **kwargs: Any) -> Any:
            happens()
            return before(*args, **kwargs)

        setattr(owner, name, hooked)


BENCHMARK = FaultsBench()

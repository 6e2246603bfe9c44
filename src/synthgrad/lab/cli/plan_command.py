"""``synthgrad plan``: its options. PyTorch, and what plans, are loaded when it runs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from ..options import option, options_of
from .from_fields import with_options
from .options import DEVICES

__all__ = ["CODECS", "RULES", "SCHEDULES", "PlanOptions", "plan_command"]

#: Schedules, as `synthgrad.planner` has them; help and completion do not wait for PyTorch.
SCHEDULES = (
    *("backprop", "gpipe", "1f1b", "interleaved_1f1b", "zero_bubble", "zero_bubble_v"),
    *("data_parallel", "stages", "local_loss", "delayed"),
)
#: Methods whose rule stages can have.
RULES = ("cdni", "dni", "local_loss", "sobolev", "stale", "head_gradient", "none")
#: What crosses the link in place of float32.
CODECS = ("float32", "bfloat16", "int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """Options of the command.

    Attributes:
        model: a factory of the network; None if costs are given.
        stages: number of processes.
        link: between neighbours.
        devices: speeds of the machines.
        costs: a table of costs, in place of profiling.
        save_costs: where to write the table.
        rule: of the stages; None for one that fits the network.
        schedules: to compare.
        microbatches: numbers to choose from.
        share: of the messages that are sent.
        codec: of what crosses the link.
        accumulate: batches to an update.
        window: steps that an answer may be late; None to choose it.
        rendezvous: whether messages start when they are asked for.
        round_trips: to try in ms, separated by commas; ``none`` for none.
        data: for a factory that returns the network alone.
        batch_size: of the example from it.
        data_dir: directory of data files.
        device: to profile on.
        threads: CPU threads to profile with.
        out: folder for the plan; None to print it only.
    """

    model: str | None = option(None, "Your network.", metavar="package.module:factory")
    stages: int | None = option(
        None, "Processes, each with a part of the network.", kind=int, default="none, it must be given"
    )
    link: str | None = option(
        None, "Link between neighbours.", metavar="rtt_ms=X,mbit_s=X,…", default="none, it must be given"
    )
    devices: str | None = option(
        None,
        "Speeds of the machines, the first stage's first; 1 is this machine.",
        metavar="X,X,…",
        default="equal ones",
    )
    costs: Path | None = option(
        None,
        "Table of costs, in place of profiling a network.",
        kind=Path,
        metavar="FILE.json",
        default="profile the network on this machine",
    )
    save_costs: Path | None = option(
        None, "File for the table of costs.", kind=Path, metavar="FILE.json", default="none"
    )
    rule: str | None = option(
        None,
        "Rule of the stages; none is one that costs nothing.",
        choices=RULES,
        default="cdni; without labels, dni",
    )
    schedules: tuple[str, ...] | None = option(
        None, "Schedules to compare.", listed=True, choices=SCHEDULES, default="all"
    )
    microbatches: tuple[int, ...] | None = option(
        None, "Microbatches that pipelines may have.", kind=int, listed=True, least=1, default="2,4,8,16,32"
    )
    share: str = option(
        "1,0.25", "Shares of the messages that stages send.", metavar="X,X,…", default="1,0.25"
    )
    codec: tuple[str, ...] = option(
        ("float32", "bfloat16"),
        "What crosses the link.",
        listed=True,
        choices=CODECS,
        default="float32,bfloat16",
    )
    accumulate: int = option(1, "Batches to an update.", kind=int, least=1, default="1")
    window: int | None = option(
        None, "Steps that an answer may be late.", kind=int, least=0, default="as many as the link needs"
    )
    rendezvous: bool = option(
        False, "Messages start when their receiver asks for them, as with gloo and large messages.", kind=bool
    )
    round_trips: str | None = option(
        None,
        "Round trips to try, in ms, or none, which is faster for many stages.",
        metavar="X,X,…",
        default="0.1 to 500",
    )
    data: str | None = option(
        None,
        "Data set or file for the batch of a network that comes without one.",
        default="the factory's batch",
    )
    batch_size: int = option(256, "Examples of the batch from --data.", kind=int, least=1, default="256")
    data_dir: Path | None = option(
        None, "Directory of data files.", kind=Path, metavar="DIR", default="SYNTHGRAD_DATA, then the cache"
    )
    device: str = option(
        "auto", "Where to profile; auto takes CUDA where there is any.", choices=DEVICES, default="auto"
    )
    threads: int | None = option(
        None, "CPU threads to profile with.", kind=int, least=1, default="PyTorch's choice"
    )
    out: Path | None = option(
        None, "Folder for the plan, its page and traces.", kind=Path, metavar="DIR", default="print only"
    )


@click.command(
    "plan",
    short_help="Say whether decoupling pays for a network and a link.",
    epilog="\n".join(
        [
            "\b",
            "Examples:",
            "  synthgrad plan --model my_module:make --stages 4 --link rtt_ms=50,mbit_s=1000",
            "  synthgrad plan --model my_module:make --stages 2 --link rtt_ms=5,mbit_s=100 --devices 1,0.5 --out plan",
            "  synthgrad plan --costs costs.json --stages 4 --link rtt_ms=20 --schedules 1f1b,stages",
        ]
    ),
)
@with_options(options_of(PlanOptions))
def plan_command(**given: Any) -> int:
    """Simulate schedules for a network, some machines and a link: which is the fastest, and does decoupling pay?

    The network's modules are profiled on this machine, or their costs are read from a file. The factory takes no arguments
    and returns the network, or a tuple (network, batch), (network, batch, target) or (network, batch, target, criterion).
    Nothing is sent or trained; rows compare throughput, not what is learned.
    """
    from .planning import print_plan

    names = {f.name for f in fields(PlanOptions)}
    return print_plan(PlanOptions(**{k: v for k, v in given.items() if k in names and v is not None}))

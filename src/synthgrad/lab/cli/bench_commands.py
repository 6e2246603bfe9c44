"""The command ``bench``."""

from __future__ import annotations

from typing import Any

import click

from ..training.payloads import ARCHS
from ..training.run import PRECISIONS
from .completion import list_of, methods, one_of
from .from_fields import Names, Numbers
from .names import BENCHMARKS, MODES
from .options import Common, gathered

__all__ = ["bench_command"]


@click.command("bench", short_help="Measure speed or memory.")
@click.argument("name", shell_complete=one_of(BENCHMARKS))
@click.option(
    "--methods", type=Names(), shell_complete=methods, help="Methods to measure [default: the tier's]."
)
@click.option(
    "--layers",
    type=Numbers(2),
    help="Weight layers, the output layer included, as a list [default: the tier's].",
)
@click.option(
    "--width", "widths", type=Numbers(1), help="Units of a hidden layer, as a list [default: the tier's]."
)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=Numbers(1),
    help="Examples in a batch, as a list [default: the tier's].",
)
@click.option(
    "--modes",
    type=Names(),
    shell_complete=list_of(MODES),
    help="eager, compiled, or both as a list [default: the tier's].",
)
@click.option(
    "--unroll",
    "unrolls",
    type=Numbers(1),
    help="Steps of an unroll, as a list; recurrent networks only [default: the tier's].",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    metavar="N",
    help="Rounds in which the methods take turns [default: the tier's].",
)
@click.option(
    "--arch",
    metavar="fcn|cnn|lstm|NAME",
    shell_complete=one_of((*ARCHS, "lstm")),
    help="Network: fcn, cnn (bench step), lstm (bench memory), or the name of one of bench networks [default: fcn; all].",
)
@click.option(
    "--precision",
    metavar="|".join(PRECISIONS),
    shell_complete=one_of(PRECISIONS),
    help="Precision of the arithmetic; bench step only [default: float32].",
)
@click.option(
    "--stages",
    type=Numbers(2),
    help="Processes that the network is divided among, as a list; bench pipeline only [default: the tier's].",
)
@click.option(
    "--link",
    metavar="rtt_ms=X,mbit_s=Y",
    help="Emulate this link between the processes; bench pipeline on Linux as root only.",
)
@click.option("--learn", is_flag=True, help="Also train to an accuracy, and time that.")
@gathered(Common)
def bench_command(options: Common, name: str, modes: tuple[str, ...] | None, **given: Any) -> int:
    """Measure speed or memory: the benchmark NAME; see synthgrad list.

    Lists restrict the tier's sweep, or put other values in place of its own.
    """
    from . import work

    return work.bench(options, name, modes, given)

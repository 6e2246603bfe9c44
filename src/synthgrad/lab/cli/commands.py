"""The commands: each hands its options' values to `work`, which is loaded when a command does something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .completion import list_of, methods, one_of
from .names import (
    ARCHS,
    BENCHMARKS,
    COMPARED,
    DATA,
    ENGINES,
    EXPERIMENTS,
    METHODS,
    MODES,
    PRECISIONS,
    RECURRENT,
    TEXTS,
)
from .options import Common, Names, Numbers, common

__all__ = ["bench_command", "compare_command", "list_command", "report_command", "run_command"]


_TENSORBOARD = click.option(
    "--tensorboard", is_flag=True, help="Also write TensorBoard event files, into the results folder."
)


@click.command("compare", short_help="Train one network by several methods, side by side.")
@click.option(
    "--data",
    default="mnist-10k",
    show_default=True,
    metavar="NAME",
    shell_complete=one_of(DATA),
    help="Data set; see synthgrad list.",
)
@click.option(
    "--methods",
    type=Names(),
    default=",".join(COMPARED),
    show_default=True,
    shell_complete=list_of(METHODS),
    help="Methods; see synthgrad list.",
)
@click.option(
    "--arch",
    default="fcn",
    show_default=True,
    metavar="|".join(ARCHS),
    shell_complete=one_of(ARCHS),
    help="Fully connected or convolutional network.",
)
@click.option(
    "--layers", type=int, metavar="N", help="Weight layers, the output layer included [default: 4]."
)
@click.option(
    "--width", type=int, metavar="N", help="Units or filters of a hidden layer [default: the paper's]."
)
@click.option(
    "--steps",
    type=Numbers(1),
    help="Batches to train on; several numbers are several budgets [default: the tier's].",
)
@click.option("--batch-size", type=int, metavar="N", help="Examples in a batch [default: 256].")
@click.option(
    "--lr", type=float, metavar="X", help="Learning rate of Adam at the start [default: the tier's]."
)
@click.option(
    "--update-prob", type=float, metavar="X", help="Probability that a module updates in a step [default: 1]."
)
@click.option(
    "--engine",
    default="in-process",
    show_default=True,
    metavar="|".join(ENGINES),
    shell_complete=one_of(ENGINES),
    help="in-process trains without locks, layer-parallel all layers in one batch, stages in a process for each part (two, or as --at cuts), plain in an ordinary loop.",
)
@click.option(
    "--precision",
    default="float32",
    show_default=True,
    metavar="|".join(PRECISIONS),
    shell_complete=one_of(PRECISIONS),
    help="Arithmetic of matrix products and convolutions; bfloat16 runs them under autocast.",
)
@click.option("--compile", "compiled", is_flag=True, help="Run the network under torch.compile.")
@click.option("--augment", is_flag=True, help="Flip and shift training images at random.")
@click.option(
    "--warm-up", type=int, metavar="N", help="Learn from the true gradient for N batches, rules beside it."
)
@click.option("--freeze-after", type=int, metavar="N", help="Rules learn no more after N batches.")
@click.option(
    "--min-cosine",
    type=float,
    metavar="X",
    help="Learn from the true gradient while a rule's cosine to it is under X.",
)
@click.option("--model", metavar="package.module:factory", help="Your own network.")
@click.option("--at", type=Names(), help="Submodules after which to cut [default: after every layer].")
@common
@_TENSORBOARD
def compare_command(
    options: Common,
    data: str,
    methods: tuple[str, ...],
    at: tuple[str, ...] | None,
    tensorboard: bool,
    **overrides: Any,
) -> int:
    """Train one network by several methods on one data set, side by side.

    Without options: backprop, no-bprop, DNI and cDNI on 10,000 embedded handwritten digits.
    """
    from . import work

    return work.compare(options, data, methods, at, overrides, tensorboard=tensorboard)


@click.command("run", short_help="Run an experiment.")
@click.argument("name", shell_complete=one_of(EXPERIMENTS))
@click.option(
    "--data",
    type=Names(),
    shell_complete=list_of((*DATA, *TEXTS)),
    help="Data sets to keep [default: all]; charlm takes any text, by name or path.",
)
@click.option(
    "--arch", type=Names(), shell_complete=list_of(ARCHS), help="Networks to keep: fcn, cnn [default: all]."
)
@click.option(
    "--layers",
    type=Numbers(2),
    help="Depths to keep: weight layers, the output layer included [default: all].",
)
@click.option(
    "--unroll",
    type=Numbers(1),
    help="Lengths of unrolls to keep, of recurrent networks [default: all].",
)
@click.option(
    "--methods",
    type=Names(),
    shell_complete=list_of((*METHODS, *RECURRENT)),
    help="Methods to keep; table1 takes every one [default: those of the paper's experiment].",
)
@click.option(
    "--precision",
    metavar="|".join(PRECISIONS),
    shell_complete=one_of(PRECISIONS),
    help="Precision of the arithmetic [default: the tier's].",
)
@common
@_TENSORBOARD
def run_command(options: Common, name: str, tensorboard: bool, **choice: Any) -> int:
    """Run the experiment NAME; see synthgrad list.

    Lists restrict it to some of its cells.
    """
    from . import work

    return work.run(options, name, choice, tensorboard=tensorboard)


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
@common
def bench_command(options: Common, name: str, modes: tuple[str, ...] | None, **given: Any) -> int:
    """Measure speed or memory: the benchmark NAME; see synthgrad list.

    Lists restrict the tier's sweep, or put other values in place of its own.
    """
    from . import work

    return work.bench(options, name, modes, given)


@click.command("report", short_help="Tables and a page from results folders.")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR…")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The page [default: report.html in the first DIR]."
)
def report_command(folders: tuple[Path, ...], out: Path | None) -> int:
    """Print tables and write a page from the results folders DIR…."""
    from . import work

    return work.report(folders, out)


@click.command("list", short_help="Say what there is.")
def list_command() -> int:
    """Say which experiments, benchmarks, methods and data sets there are."""
    from . import work

    return work.show_list()

"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from ..options import option, options_of
from .from_fields import with_options

__all__ = ["DEVICES", "TIERS", "CommonOptions", "TrainingOptions", "pass_options"]

TIERS = ("smoke", "quick", "full")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonOptions:
    """Options of all commands that train or measure.

    Attributes:
        out: folder for the results; None for a name made of the time.
        tier: amount of work, one of `TIERS`.
        seeds: seeds of the runs.
        device: device to compute on, one of `DEVICES`.
        threads: number of CPU threads of each run; None for the default.
        data_dir: directory of data files, or None.
        resume: whether to skip runs that the records show as done, and to resume others from snapshots.
        quiet: whether to print only the tables at the end.
    """

    out: Path | None = option(
        None, "Folder for the results.", kind=Path, metavar="DIR", default="runs/NAME-TIME"
    )
    tier: str = option("quick", "How much work.", choices=TIERS, default="quick")
    seeds: tuple[int, ...] = option((0,), "Seeds, separated by commas.", kind=int, listed=True, default="0")
    device: str = option(
        "auto", "Where to compute; auto takes CUDA where there is any.", choices=DEVICES, default="auto"
    )
    threads: int | None = option(
        None,
        "CPU threads of each run.",
        kind=int,
        least=1,
        default="PyTorch's choice",
    )
    data_dir: Path | None = option(
        None, "Directory of data files.", kind=Path, metavar="DIR", default="SYNTHGRAD_DATA, then the cache"
    )
    resume: bool = option(
        False, "Skip runs that the records in --out show as done; resume others from snapshots.", kind=bool
    )
    quiet: bool = option(False, "Print the tables at the end only.", kind=bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions(CommonOptions):
    """Options of the commands that train.

    Attributes:
        jobs: number of runs in parallel.
        tensorboard: whether to write TensorBoard event files.
    """

    jobs: int = option(1, "Runs in parallel, each in its own process.", kind=int, least=1, default="1")
    tensorboard: bool = option(
        False, "Also write TensorBoard event files, into the results folder.", kind=bool
    )


OptionsT = TypeVar("OptionsT", bound=CommonOptions)


def pass_options(kind: type[OptionsT]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the options of a class to a command.

    The command gets their values as an object of this class, its first argument.

    Args:
        kind: the class.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def command(**values: Any) -> Any:
            given = {f.name: values.pop(f.name) for f in fields(kind)}
            return function(kind(**{k: v for k, v in given.items() if v is not None}), **values)

        return with_options(options_of(kind))(command)

    return decorate

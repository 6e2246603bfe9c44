"""The options of the commands, and how their texts become values; errors are one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from .completion import folders, one_of
from .names import DEVICES, TIERS

__all__ = ["Common", "Names", "Numbers", "common"]


class Names(click.ParamType[tuple[str, ...]]):
    """A list of names, separated by commas."""

    name = "a,b,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in str(value).split(","))
        if not all(names):
            self.fail(
                f"{value!r} has an empty name; expected names separated by commas, as in a,b", param, ctx
            )
        if len(set(names)) != len(names):
            self.fail(f"{value!r} has a name twice; give each once", param, ctx)
        return names


class Numbers(click.ParamType[tuple[int, ...]]):
    """A list of whole numbers from a least one up, separated by commas."""

    name = "1,2,…"

    def __init__(self, least: int = 0) -> None:
        self.least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r}: expected whole numbers separated by commas, as in 1,2,3", param, ctx)
        if min(numbers) < self.least or max(numbers) >= 1 << 63 or len(set(numbers)) != len(numbers):
            self.fail(
                f"{value!r}: expected different numbers, each at least {self.least}, below 2^63", param, ctx
            )
        return numbers


_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_OPTIONS: tuple[_Decorator, ...] = (
    click.option(
        "--out",
        type=click.Path(path_type=Path),
        shell_complete=folders,
        help="Folder for the results [default: runs/NAME-TIME].",
    ),
    click.option(
        "--tier",
        default="quick",
        show_default=True,
        metavar="|".join(TIERS),
        shell_complete=one_of(TIERS),
        help="How much work.",
    ),
    click.option(
        "--seeds", type=Numbers(), default="0", show_default=True, help="Seeds, separated by commas."
    ),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="|".join(DEVICES),
        shell_complete=one_of(DEVICES),
        help="Where to compute; auto takes CUDA where there is any.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1),
        metavar="N",
        help="CPU threads of each run [default: PyTorch's choice; in benchmarks the tier's].",
    ),
    click.option(
        "--jobs",
        type=click.IntRange(1),
        metavar="N",
        default=1,
        show_default=True,
        help="Runs side by side; benchmarks take 1 only.",
    ),
    click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        shell_complete=folders,
        help="Directory of data files [default: SYNTHGRAD_DATA, then the cache].",
    ),
    click.option(
        "--resume", is_flag=True, help="Skip what the records in --out show as done; go on from snapshots."
    ),
    click.option("--quiet", is_flag=True, help="Print the tables at the end only."),
)


@dataclass(frozen=True, slots=True)
class Common:
    """The values of the options that all commands which compute have."""

    out: Path | None
    device: str
    threads: int | None
    quiet: bool
    seeds: tuple[int, ...]
    tier: str
    data_dir: Path | None
    resume: bool
    jobs: int


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of commands that compute; the function takes their values as one `Common` first."""

    @wraps(function)
    def gathered(**values: Any) -> Any:
        shared = Common(**{f.name: values.pop(f.name) for f in fields(Common)})
        return function(shared, **values)

    command: Callable[..., Any] = gathered
    for option in reversed(_OPTIONS):
        command = option(command)
    return command

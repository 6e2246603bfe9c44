"""Makes the options of the command line from fields of dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..options import Option
from .completion import folders, list_of, one_of

__all__ = ["NameList", "NumberList", "click_options", "with_options"]

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class NameList(click.ParamType[tuple[str, ...]]):
    """The type of an option with a list of names, separated by commas."""

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
            self.fail(f"{value!r} has a name twice; expected different names", param, ctx)
        return names


class NumberList(click.ParamType[tuple[int, ...]]):
    """The type of an option with a list of whole numbers, separated by commas.

    Args:
        least: the smallest accepted number.
    """

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


def click_options(options: Mapping[str, Option]) -> list[Decorator]:
    """Return decorators that add the options to a command; options that are not given have the value None."""
    return [_click_option(name, option) for name, option in options.items()]


def with_options(options: Mapping[str, Option]) -> Decorator:
    """Return a decorator that adds the options to a command, in their order."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorate in reversed(click_options(options)):  # click lists the last decorator first
            function = decorate(function)
        return function

    return add


def _click_option(name: str, option: Option) -> Decorator:
    flag = option.flag or "--" + name.replace("_", "-")
    words = f"{option.help.removesuffix('.')} [default: {option.default}]." if option.default else option.help
    if option.kind is bool:
        return click.option(flag, name, is_flag=True, default=None, help=words)
    return click.option(
        flag,
        name,
        type=_type(option),
        metavar=_metavar(option),
        shell_complete=_completion(option),
        help=words,
    )


def _type(option: Option) -> Any:
    if option.listed:
        return NumberList(option.least or 0) if option.kind is int else NameList()
    if option.kind is Path:
        return click.Path(path_type=Path)
    if option.kind is int and option.least is not None:
        return click.IntRange(option.least)
    return option.kind


def _metavar(option: Option) -> str | None:
    if option.metavar:
        return option.metavar
    if option.choices and not option.listed:
        return "|".join(option.choices)
    return {int: "N", float: "X"}.get(option.kind) if not option.listed else None


def _completion(option: Option) -> Any:
    choices: Sequence[str] = option.choices
    if option.kind is Path:
        return folders
    if not choices:
        return None
    return list_of(choices) if option.listed else one_of(choices)

"""Shell completion of the values of options: names, the next name of a list, or folders.

click has the shells' part: ``_SYNTHGRAD_COMPLETE=bash_source synthgrad`` prints a script for bash's start-up file to
evaluate (``zsh_source`` and ``fish_source`` for the others).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem, FishComplete, add_completion_class

__all__ = ["Completer", "folders", "list_of", "one_of"]

#: A function that takes context, parameter and the text typed so far, and returns the completions.
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem[Any]]]


def one_of(names: Sequence[str]) -> Completer:
    """Return a function that offers the names that begin with the typed text."""

    def offer(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem[Any]]:
        return [CompletionItem(name) for name in names if name.startswith(typed)]

    return offer


def list_of(names: Sequence[str]) -> Completer:
    """Return a function that completes the last name of a list; names that the list already has are not offered."""

    def offer(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem[Any]]:
        before, comma, last = typed.rpartition(",")
        given = before.split(",")
        fitting = [name for name in names if name.startswith(last) and name not in given]
        return [CompletionItem(before + comma + name) for name in fitting]

    return offer


def folders(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem[Any]]:
    """Let the shell complete folders."""
    return [CompletionItem(typed, type="dir")]


class _Fish(FishComplete):
    """Completion for fish; click's own script would end a value at its first comma."""

    source_template = FishComplete.source_template.replace('split ","', 'split --max 1 ","')


add_completion_class(_Fish)

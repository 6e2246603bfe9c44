"""What a shell is offered after an option: names, the next name of a list, or folders.

The shells' part is click's own: ``_SYNTHGRAD_COMPLETE=bash_source synthgrad`` prints what a start-up file
evaluates (``zsh_source``, ``fish_source`` for the others).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem, FishComplete, add_completion_class

__all__ = ["Completer", "folders", "list_of", "one_of"]

#: Takes context, parameter and what is typed so far; returns what is offered.
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem[Any]]]


def one_of(names: Sequence[str]) -> Completer:
    """Offer the names that begin with what is typed."""

    def offer(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem[Any]]:
        return [CompletionItem(name) for name in names if name.startswith(typed)]

    return offer


def list_of(names: Sequence[str]) -> Completer:
    """Offer what is typed with its last name completed; names that stand there already are left out."""

    def offer(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem[Any]]:
        before, comma, last = typed.rpartition(",")
        given = before.split(",")
        fitting = [name for name in names if name.startswith(last) and name not in given]
        return [CompletionItem(before + comma + name) for name in fitting]

    return offer


def folders(ctx: click.Context, param: click.Parameter, typed: str) -> list[CompletionItem[Any]]:
    """Have the shell offer its folders."""
    return [CompletionItem(typed, type="dir")]


class _Fish(FishComplete):
    """Fish, whose script from click would end a value at its first comma."""

    source_template = FishComplete.source_template.replace('split ","', 'split --max 1 ","')


add_completion_class(_Fish)

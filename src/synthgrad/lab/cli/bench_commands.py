"""``synthgrad bench``: a command for each benchmark, made from its declaration. PyTorch is loaded when one runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import click

from ..bench.declaration import Declaration, Scope
from ..bench.declarations import BENCHMARKS
from ..options import Option, options_of
from .from_fields import with_options
from .options import CommonOptions

if TYPE_CHECKING:
    from ..bench.base import Bench
    from ..records import Record

__all__ = ["bench_command"]

#: Parameters that are left out of the table of tiers, because the option's own help shows their values.
_NOT_IN_TABLE = ("methods", "arch")


class _Benchmarks(click.Group):
    """A group that lists the benchmarks in the order of their declaration, and refuses unknown names in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and not args[0].startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"benchmark '{args[0]}' is unknown; accepted: {', '.join(self.commands)}")
        return super().resolve_command(ctx, args)


@click.group(
    "bench",
    cls=_Benchmarks,
    short_help="Measure speed or memory.",
    subcommand_metavar="NAME [OPTIONS]",
    no_args_is_help=False,
    invoke_without_command=True,
    epilog="\b\nExamples:\n  synthgrad bench step\n  synthgrad bench step --help",
)
@click.pass_context
def bench_command(ctx: click.Context) -> None:
    """Measure speed or memory with the benchmark NAME, in comparison with its peers.

    Each benchmark has its own options; see synthgrad bench NAME --help.
    """
    if ctx.invoked_subcommand is None:
        ctx.fail(f"Missing argument 'NAME'; accepted: {', '.join(BENCHMARKS)}")


def _add(declared: Declaration) -> None:
    """Add the command of a benchmark to the group."""

    @click.command(
        declared.name,
        short_help=_about(declared).splitlines()[0],
        help=_about(declared),
        epilog=_epilog(declared),
    )
    @with_options(_options(declared))
    def command(**values: Any) -> int:
        given = {f.name: values.pop(f.name) for f in fields(CommonOptions)}
        common = CommonOptions(**{name: value for name, value in given.items() if value is not None})
        return _bench(declared, common, values)

    bench_command.add_command(command)


def _about(declared: Declaration) -> str:
    about = f"{declared.about[0].upper()}{declared.about[1:]}."
    if not any(option.listed for option in declared.options.values()):
        return about
    return f"{about}\n\nLists select from the tier's values, or replace them."


def _options(declared: Declaration) -> dict[str, Option]:
    """Return a benchmark's own options, followed by the common ones."""
    common = options_of(CommonOptions)
    common["tier"] = replace(common["tier"], choices=tuple(declared.tiers))
    common["threads"] = replace(common["threads"], help="CPU threads of each process.", default="1")
    common["resume"] = replace(
        common["resume"], help="Do not measure again what the records in --out show as done."
    )
    if declared.cpu_only:
        common["device"] = replace(
            common["device"],
            help="Where to compute; this benchmark runs on the CPU.",
            choices=("auto", "cpu"),
        )
    own = {name: _with_choices(option) for name, option in declared.options.items()}
    if "methods" in own:
        own["methods"] = replace(own["methods"], default=_usual_methods(declared))
    return {**own, **common}


def _with_choices(option: Option) -> Option:
    """Return an option with its accepted values in the help, unless its metavar shows them."""
    if option.choices and (option.listed or option.metavar):
        return replace(option, help=f"{option.help[:-1]}: {', '.join(option.choices)}.")
    return option


def _usual_methods(declared: Declaration) -> str:
    """Return in words which methods are measured by default."""
    by_network: dict[str, str] = {}
    networks = declared.networks or {"": declared.tiers}
    for network, tiers in networks.items():
        words = {tier: _methods_of(scope, declared) for tier, scope in tiers.items()}
        usual = words["quick"]
        others = [f"{what} in the {tier} tier" for tier, what in words.items() if what != usual]
        by_network[network] = "; ".join([usual, *others])
    if len(set(by_network.values())) == 1:
        return next(iter(by_network.values()))
    return "; ".join(f"{network}: {words}" for network, words in by_network.items())


def _methods_of(scope: Scope, declared: Declaration) -> str:
    names = declared.options["methods"].choices
    missing = [name for name in names if name not in scope.methods]
    if not missing:
        return "all"
    if len(missing) <= 2:
        return f"all but {' and '.join(missing)}"
    return ",".join(scope.methods)


def _epilog(declared: Declaration) -> str:
    """Return tables of the tiers' values, and the examples; an escape keeps click from joining the lines."""
    parts: list[str] = []
    networks = declared.networks or {"": declared.tiers}
    for network, tiers in networks.items():
        title = f"Values of the tiers with --arch {network}:" if len(networks) > 1 else "Values of the tiers:"
        rows = _rows(declared, tiers)
        if rows:
            parts.append("\n".join(["\b", title, *_aligned([("", *tiers), *rows])]))
    examples = [f"  synthgrad bench {declared.name} {rest}".rstrip() for rest in declared.examples]
    return "\n\n".join([*parts, "\n".join(["\b", "Examples:", *examples])])


def _rows(declared: Declaration, tiers: Mapping[str, Scope]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, option in declared.options.items():
        values = [getattr(scope, name) for scope in tiers.values()]
        if name in _NOT_IN_TABLE or option.default or option.kind is bool or () in values:
            continue
        rows.append((declared.flag(name), *map(_text, values)))
    return rows


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


for _declared in BENCHMARKS.values():
    _add(_declared)


def _bench(declared: Declaration, common: CommonOptions, given: dict[str, Any]) -> int:
    """Measure a benchmark, print its table and write its page; return the exit status."""
    from ..bench import base
    from ..training.load import warning_of
    from . import show, work

    scope = base.choose(
        declared,
        common.tier,
        seeds=common.seeds,
        threads=common.threads,
        device=_device(declared, common.device),
        data_dir=None if common.data_dir is None else str(common.data_dir),
        **given,
    )
    benchmark = _benchmark(declared, scope)
    folder = work.results_folder(common.out, f"bench-{declared.name}", resume=common.resume)
    if not common.resume:
        work.warn_of_other_records(folder)
    say = None if common.quiet else lambda text: click.echo(text, err=True)
    records: list[Record] = []
    written = True
    try:
        for record in base.sweep(benchmark, scope, folder, resume=common.resume, say=say):
            records.append(record)
    finally:  # after an interruption too, the records on the disk are shown
        if records:
            show.print_bench(records)
            written = work.write_page(folder, records)
            if warning := warning_of(records):
                click.echo(f"synthgrad: warning: {warning}", err=True)
    return 0 if written and all(r.status == "ok" for r in records) else 1


def _benchmark(declared: Declaration, scope: Scope) -> Bench[Any, Any, Any]:
    """Load a benchmark; ``damage`` also gets the damaged command lines."""
    from ..bench.base import benchmark_of

    if declared.name == "damage":
        from ..bench.survival.damage import INPUTS, DamageBench
        from .damaged_lines import COMMAND_LINES

        return DamageBench((*INPUTS, *COMMAND_LINES))
    return benchmark_of(declared, scope)


def _device(declared: Declaration, name: str) -> str:
    from ...core import ConfigError
    from ..training.machine import choose_device

    if declared.cpu_only and name not in ("auto", "cpu"):
        raise ConfigError(f"--device {name}: bench {declared.name} runs on the CPU; expected auto or cpu")
    return "cpu" if declared.cpu_only else choose_device(name)

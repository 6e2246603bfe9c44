"""The commands: each passes the values of its options to `work`, which is imported only when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..names import METHODS
from ..options import Option, options_of
from ..recipes import Choice, experiments
from ..recipes.comparison import GPT_METHODS
from ..recipes.comparison import METHODS as COMPARED
from ..training.payloads import FeedForward, LanguageModel
from ..training.run import Run
from ..training.settings import RuleSettings, Schedule
from .completion import one_of
from .from_fields import with_options
from .options import TrainingOptions, pass_options

__all__ = ["compare_command", "list_command", "report_command", "run_command"]

_FIELDS = options_of(FeedForward, LanguageModel, Schedule, RuleSettings, Run)
_COMPARED = {
    "data": _FIELDS["data"],
    "methods": Option(
        "Methods; see synthgrad list.",
        listed=True,
        choices=tuple(METHODS),
        default=f"{','.join(COMPARED)}; for a GPT, {','.join(GPT_METHODS)}",
    ),
    "model": Option("Your own network.", metavar="package.module:factory"),
    **_FIELDS,
}


def _examples(*lines: str) -> str:
    """Return examples for the end of a help text; the first line keeps click from joining the others."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


@click.command(
    "compare",
    short_help="Train one network with several methods.",
    epilog=_examples(
        "synthgrad compare",
        "synthgrad compare --data cifar10 --arch cnn --methods backprop,cdni --seeds 0,1,2",
        "synthgrad compare --model my_module:make --data images.npz --steps 2000",
        "synthgrad compare --arch gpt --data my.txt --methods backprop,local_loss --optimizer muon",
    ),
)
@with_options(_COMPARED)
@pass_options(TrainingOptions)
def compare_command(options: TrainingOptions, **given: Any) -> int:
    """Train one network with several methods on one data set, and compare them.

    Without options it compares backprop, no-bprop, DNI and cDNI on 10,000 embedded handwritten digits. The paper's
    experiment over several budgets is synthgrad run budgets. With --arch gpt it trains a language model on a text.
    """
    from . import work

    return work.compare(options, given)


@click.command(
    "run",
    short_help="Run an experiment.",
    epilog=_examples(
        "synthgrad run lag --tier smoke",
        "synthgrad run table1 --data mnist --layers 3,4 --seeds 0,1,2 --jobs 2 --out runs/table1",
        "synthgrad run my_experiment.py",
    ),
)
@click.argument("name", shell_complete=one_of(tuple(experiments())))
@with_options(options_of(Choice))
@pass_options(TrainingOptions)
def run_command(options: TrainingOptions, name: str, **choice: Any) -> int:
    """Run the experiment NAME: a name from synthgrad list, or a .py file that declares an experiment.

    Lists select some of its runs.
    """
    from . import work

    return work.run(options, name, choice)


@click.command(
    "report",
    short_help="Make tables and a page from results folders.",
    epilog=_examples("synthgrad report runs/compare-20260101-120000 --out page.html"),
)
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR…")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The page [default: report.html in the first DIR]."
)
def report_command(folders: tuple[Path, ...], out: Path | None) -> int:
    """Print tables and write a page from the results folders DIR…."""
    from . import work

    return work.report(folders, out)


@click.command("list", short_help="List experiments, benchmarks, methods and data sets.")
def list_command() -> int:
    """List experiments, benchmarks, methods and data sets."""
    from . import work

    return work.print_list()

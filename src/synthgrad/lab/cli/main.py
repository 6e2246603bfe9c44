"""The command line: its commands, exit status and error messages. Help and completion do not load PyTorch."""

from __future__ import annotations

import errno
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

import click

from ...version import __version__
from .bench_commands import bench_command
from .commands import compare_command, list_command, report_command, run_command
from .plan_command import plan_command
from .store_command import store_command

__all__ = ["main"]

#: Errors of the disk, which are not bugs: it is full, read-only or broken.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)

OK, BAD_RUN, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


class _InOrder(click.Group):
    """A group that lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.commands and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"No such command '{name}'; accepted: {', '.join(self.commands)}")
        return super().resolve_command(ctx, args)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    import torch

    from ..training.machine import choose_device, device_name

    device = choose_device("auto")
    name = device_name(device) + (" (cpu)" if device == "cpu" else "")
    click.echo(f"synthgrad {__version__} · torch {torch.__version__} · {name}")
    ctx.exit()


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    callback=_version,
    expose_value=False,
    is_eager=True,
    help="Show versions and device.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks; accepted anywhere on the line.")
def cli(debug: bool) -> None:
    """Decoupled neural interfaces: train network modules that do not wait for each other."""


for _command in (
    compare_command,
    run_command,
    bench_command,
    plan_command,
    store_command,
    report_command,
    list_command,
):
    cli.add_command(_command)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    The exit status is 0 if every run ended ``ok``, 1 if one failed or diverged, 2 for bad usage, and 130 after an
    interruption.

    Args:
        argv: arguments; None for those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    # --debug belongs to all commands, so it is accepted anywhere on the line.
    arguments = [a for a in arguments if a != "--debug"]
    # Job schedulers end programs with SIGTERM, which is handled like Ctrl-C.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with warnings.catch_warnings():  # also restores showwarning
            warnings.showwarning = _show_warning
            status = _run_command(arguments, debug)
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(status)


def _run_command(arguments: list[str], debug: bool) -> int:
    """Run a command and return the exit status; every error becomes one line on standard error."""
    try:
        result = cli.main(arguments, prog_name="synthgrad", standalone_mode=False)
        return result if isinstance(result, int) else OK
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return BAD_USAGE
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        if debug:
            traceback.print_exc()
        return _fail(error.format_message(), BAD_USAGE)
    except (KeyboardInterrupt, click.Abort):
        return _fail(
            "interrupted; the runs that have ended are recorded, use --resume to continue", INTERRUPTED
        )
    except BrokenPipeError:
        return OK
    except Exception as error:
        if debug:
            traceback.print_exc()
        if _is_synthgrad_error(error):
            return _fail(str(error), getattr(error, "exit_status", BAD_USAGE))
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            what = error.filename or "the output"
            return _fail(f"{what}: cannot be written ({error.strerror}); make room there", BAD_RUN)
        return _fail(f"{type(error).__name__}: {error}; this is a bug, --debug shows where", BAD_RUN)


def _is_synthgrad_error(error: Exception) -> bool:
    """Return whether an error is a `SynthgradError`, without importing the class, which would load PyTorch.

    If such an error has been raised, its module has been imported.
    """
    errors = sys.modules.get("synthgrad.core.errors")
    return errors is not None and isinstance(error, errors.SynthgradError)


def _fail(message: str, status: int) -> int:
    line = " ".join(message.split())
    click.echo(f"synthgrad: error: {line}", err=True)
    return status


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: object
) -> None:
    source = "" if "synthgrad" in Path(filename).parts else f"{category.__name__}: "
    click.echo(f"synthgrad: warning: {source}{' '.join(str(message).split())}", err=True)

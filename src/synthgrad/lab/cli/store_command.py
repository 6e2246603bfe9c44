"""``synthgrad store``: what stages that go on without each other know of each other, in a process that outlives them."""

from __future__ import annotations

import click

__all__ = ["store_command"]


@click.command(
    "store",
    short_help="Hold the store of stages that go on without each other.",
    epilog="\n".join(["\b", "Examples:", "  synthgrad store --host 10.0.0.1 --port 29400"]),
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Where to listen, and nowhere else.",
)
@click.option(
    "--port",
    default=29400,
    show_default=True,
    type=click.IntRange(1, 65535),
    metavar="N",
    help="At which port.",
)
def store_command(host: str, port: int) -> int:
    """Hold the store of stages with on_loss="continue", until it is interrupted.

    Stages find each other in it, and say how far they are. It holds no weights and no data, and asks nobody who he is: let a
    firewall admit the machines of the run alone.
    """
    from ..training.store import hold_store

    return hold_store(host, port)

"""Where the store of `join` listens."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from synthgrad.core import ConfigError
from synthgrad.engines.stages import start


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port that is taken, with the environment of rank 0 of two processes that are to meet there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        names = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        for name, value in names.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        yield port


def test_a_port_that_is_taken_is_named(port: int) -> None:
    with pytest.raises(ConfigError, match=f"MASTER_PORT={port} of 127.0.0.1: .*; choose another one"):
        start._own_store(1.0)


@pytest.mark.usefixtures("port")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),  # torchrun has one
        ("MASTER_ADDR", "192.0.2.1"),  # for documentation: no machine has it
        ("MASTER_ADDR", "no-such-machine.invalid"),
    ],
)
def test_where_it_cannot_choose_pytorch_makes_the_store(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert start._own_store(1.0) is None

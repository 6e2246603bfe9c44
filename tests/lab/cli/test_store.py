"""``synthgrad store``: it listens where it was told, until it is interrupted."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from synthgrad.engines.stages import ElasticGloo
from tests.lab.cli.helpers import call


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow(reason="starts a process that loads PyTorch")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stages_find_each_other_in_it_until_it_is_interrupted(how: signal.Signals, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "synthgrad", "store", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == f"store at 127.0.0.1:{port}; Ctrl-C ends it\n"
        members = ElasticGloo(0, 2, f"127.0.0.1:{port}").join("version", {})
        assert members.life == 1
        members.leave()
        process.send_signal(how)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


def test_a_port_that_is_taken_is_refused_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert call("store", "--port", str(port)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line == f"synthgrad: error: 127.0.0.1:{port}: Address already in use; choose another address or port"
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("--port 0", "0 is not in the range 1<=x<=65535"),
        ("--host 203.0.113.1 --port 29400", "203.0.113.1:29400"),
    ],
)
def test_what_nobody_can_listen_at_is_refused_in_a_line(
    given: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("store", *given.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line

"""Stages that go on without each other, in processes that are killed, frozen and started anew, over gloo."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from synthgrad.core import ConfigError, StageError
from synthgrad.engines.stages import ElasticGloo, serve_store

pytestmark = pytest.mark.slow(reason="starts processes that load PyTorch")

ROOT = Path(__file__).parents[3]


@pytest.fixture
def store() -> Generator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    held = serve_store("127.0.0.1", port)
    yield f"127.0.0.1:{port}"
    del held


@dataclass
class Process:
    """A stage."""

    stage: int
    store: str
    until: int
    process: Any = None
    lines: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def start(self) -> Process:
        code = "tests.engines.stages.elastic_program"
        command = [sys.executable, "-m", code, str(self.stage), self.store, str(self.until)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        return self

    def read(self, until_number: int | None = None) -> Process:
        """Read until it has trained on a batch, or to its end."""
        for line in self.process.stdout:
            self.lines.append(json.loads(line))
            if until_number is not None and self.lines[-1].get("number", -1) >= until_number:
                break
        return self

    @property
    def numbers(self) -> list[int]:
        return [line["number"] for line in self.lines if "number" in line]

    @property
    def times(self) -> dict[int, float]:
        return {line["number"]: line["at"] for line in self.lines if "number" in line}

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def three(store: str) -> Generator[list[Process]]:
    made = [Process(stage, store, 500).start() for stage in range(3)]
    yield made
    for one in made:
        if one.process.poll() is None:
            one.kill()
        one.process.stdout.close()


def test_a_stage_that_is_killed_is_replaced_while_the_others_train(three: list[Process], store: str) -> None:
    below, middle, above = three
    middle.read(50)
    middle.kill()
    killed_at = time.time()
    again = Process(1, store, 500).start()
    three.append(again)
    for one in (below, again, above):
        one.read()
        assert one.process.wait(60) == 0
        assert one.lines[-1]["finite"] is True
    assert below.numbers == list(range(500))
    assert below.lines[-1]["num_alone"] > 0
    assert again.numbers == list(range(again.numbers[0], 500))
    assert again.numbers[0] > 51
    seen = [n for n in above.numbers if n >= again.numbers[0]]
    assert seen == again.numbers
    # Nobody waits for the dead: its connection is closed by the kernel.
    after = [at for at in below.times.values() if at > killed_at]
    assert max(b - a for a, b in zip(after, after[1:], strict=False)) < 10
    # Back soon after its imports; how soon, the benchmark says.
    came = next(line["came"] for line in again.lines if "came" in line)
    assert again.times[again.numbers[0]] - came < 30


def test_a_stage_that_freezes_is_gone_until_it_thaws(three: list[Process]) -> None:
    below, _, above = three
    above.read(50)
    os.kill(above.process.pid, signal.SIGSTOP)
    time.sleep(5.0)
    os.kill(above.process.pid, signal.SIGCONT)
    for one in three:
        one.read()
        assert one.process.wait(60) == 0
    assert below.numbers == three[1].numbers == list(range(500))
    assert three[1].lines[-1]["num_alone"] > 3
    assert above.numbers[-1] == 499
    assert above.lines[-1]["num_skipped"] > 3


def held_at(port: int) -> subprocess.Popen[str]:
    """Start a store in a process of its own."""
    command = [sys.executable, "-m", "synthgrad", "store", "--port", str(port)]
    held = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert held.stdout is not None
    held.stdout.readline()
    held.stdout.close()
    return held


def test_without_the_store_stages_go_on_and_with_another_they_make_lines_again() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    held = held_at(port)
    made = [Process(stage, f"127.0.0.1:{port}", 1500).start() for stage in range(3)]
    try:
        below, middle, above = made
        below.read(50)
        held.kill()
        held.wait()
        below.read(150)
        held = held_at(port)
        below.read(300)
        above.kill()
        again = Process(2, f"127.0.0.1:{port}", 1500).start()
        made.append(again)
        for one in (below, middle, again):
            one.read()
            assert one.process.wait(60) == 0
        assert below.numbers == middle.numbers == list(range(1500))
        assert again.numbers == list(range(again.numbers[0], 1500))
        assert 300 < again.numbers[0] < 1490
        assert middle.lines[-1]["num_alone"] > 0
    finally:
        held.kill()
        held.wait()
        for one in made:
            if one.process.poll() is None:
                one.kill()
            one.process.stdout.close()


def test_a_place_is_not_taken_while_its_stage_lives(three: list[Process], store: str) -> None:
    three[0].read(5)
    other = Process(0, store, 10).start()
    three.append(other)
    other.read()
    assert other.process.wait(30) == 2
    assert "stage 0 is alive, at step" in other.lines[-1]["error"]


def test_other_settings_are_refused_and_nothing_is_destroyed(store: str) -> None:
    ours = ElasticGloo(0, 2, store)
    members = ours.join("version 1", {"seed": 3, "what crosses": ["a", "b"]})
    with pytest.raises(ConfigError, match="differ in what crosses: c against b"):
        ElasticGloo(1, 2, store).join("version 1", {"seed": 3, "what crosses": ["a", "c"]})
    with pytest.raises(ConfigError, match="differ in the version: version 2 against version 1"):
        ElasticGloo(1, 2, store).join("version 2", {"seed": 3, "what crosses": ["a", "b"]})
    theirs = ElasticGloo(1, 2, store).join("version 1", {"seed": 3, "what crosses": ["a", "b"]})
    assert (members.life, theirs.life) == (1, 1)
    members.leave()
    theirs.leave()
    again = ElasticGloo(1, 2, store).join("version 1", {"seed": 3, "what crosses": ["a", "b"]})
    assert again.life == 2
    again.stop()


@pytest.mark.parametrize(
    ("address", "error", "says"),
    [
        ("nowhere", ConfigError, "expected an address and a port"),
        ("127.0.0.1:0", ConfigError, "expected an address and a port"),
        ("127.0.0.1:9", StageError, "start it with: synthgrad store --host 127.0.0.1 --port 9"),
    ],
)
def test_a_store_that_is_not_there_is_named(address: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ElasticGloo(0, 2, address)


@pytest.mark.parametrize(("stage", "stages"), [(2, 2), (-1, 2), (0, 1)])
def test_a_stage_that_there_is_not_is_refused(stage: int, stages: int, store: str) -> None:
    with pytest.raises(ConfigError, match=f"stage {stage} of {stages}"):
        ElasticGloo(stage, stages, store)

"""``bench pipeline`` with real processes: every method, what fails, what is ended, an emulated link."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from synthgrad.lab.bench.pipeline.cases import Case
from synthgrad.lab.bench.pipeline.learn import Goal
from synthgrad.lab.bench.pipeline.network import Size
from synthgrad.lab.bench.pipeline.session import Session, started
from synthgrad.lab.bench.pipeline.timing import measure
from synthgrad.lab.bench.workers import WorkersError
from synthgrad.lab.training.load import Load
from synthgrad.lab.wan import parse_link, unavailable_reason
from tests.lab.cli.helpers import call, records_in

SIZE = Size(width=16, layers=5, batch_size=16, stages=2, threads=1, seed=0)
BACKPROP, OURS = Case("backprop"), Case("stages", observe_prob=1.0)

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def shared() -> Iterator[Session]:
    """Processes for all tests: to start them takes longer than what they are asked for."""
    with Session(SIZE, 3e-4, None, None, timeout_s=60) as made:
        yield made


@pytest.fixture
def session(shared: Session) -> Session:
    """A session that knows of nothing that other tests have built in its processes."""
    shared._built, shared.failed = [], {}
    shared.num_starts = int(shared._workers is not None)
    return shared


@pytest.mark.slow(reason="starts pipelines of processes anew")
def test_the_command_measures_every_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Load, "so_far", lambda self: 0.0)  # other tests may keep the machine busy
    smoke = ("bench", "pipeline", "--tier", "smoke", "--device", "cpu", "--rounds", "1", "--quiet")
    assert call(*smoke, "--out", tmp_path) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "bench/pipeline" in shown.out
    records = records_in(tmp_path)
    assert {r["method"] for r in records} == {
        *(
            "backprop",
            "backprop_all_threads",
            "backprop_microbatches",
            "independent",
            "ddp",
            "gpipe",
            "1f1b",
            "zero_bubble",
            "stages",
            "stages_sparse",
            "stages_local",
        )
    }
    for record in records:
        metrics = record["metrics"]
        assert (record["status"], record["error"]) == ("ok", None)
        assert metrics["step_ms_median"] > 0
        trained = 2 if record["method"] == "independent" else 1  # batches in a step
        assert metrics["examples_per_s"] == pytest.approx(trained * 8e3 / metrics["step_ms_median"])
        assert 0 < metrics["train_loss_last"] < 10
        assert metrics["peak_bytes"] > 0
    found = {r["method"]: r["metrics"] for r in records}
    tensor_bytes = 8 * 16 * 4
    assert found["backprop"]["sent_bytes_per_step"] == found["independent"]["sent_bytes_per_step"] == 0
    assert found["1f1b"]["sent_bytes_per_step"] == 2 * tensor_bytes  # up and down once
    assert found["1f1b"]["sent_up_bytes_per_row"] == found["1f1b"]["sent_down_bytes_per_row"] == 16 * 4
    assert 16 * 4 < found["stages_local"]["sent_up_bytes_per_row"] < 2 * 16 * 4
    assert found["stages_local"]["sent_down_bytes_per_row"] < 16 * 4 / 2  # headers alone
    assert found["zero_bubble"]["sent_bytes_per_step"] == 4 * tensor_bytes  # zbv: twice, the tip is not sent
    assert found["ddp"]["sent_bytes_per_step"] == 2 * 4 * num_parameters()
    headers = 2 * 11 * 8  # eight numbers, and the sizes of a matrix and of a vector
    assert found["stages"]["sent_bytes_per_step"] == 2 * tensor_bytes + headers
    assert found["stages_sparse"]["sent_bytes_per_step"] <= 2 * tensor_bytes + headers
    assert 0 < found["stages"]["snapshot_ms"] < 10_000
    labels = 8 * 8  # that no message comes is told in a header, too
    assert found["stages_local"]["sent_bytes_per_step"] <= tensor_bytes + headers + labels
    assert (tmp_path / "report.html").exists()


def num_parameters() -> int:
    hidden = [784 * 16, *[16 * 16] * 3]
    return sum(hidden) + 4 * 3 * 16 + 16 * 10 + 10


@pytest.mark.slow(reason="starts pipelines of processes anew")
def test_schedules_compute_the_same_step_and_what_fails_takes_no_other_along(session: Session) -> None:
    cases = [
        Case("gpipe", 4),
        Case("1f1b", 4),
        Case("zero_bubble", 4, "interleaved"),
        Case("zero_bubble", 4, "zbv"),
    ]
    losses = []
    for case in cases:
        assert session.build(case), session.failed
        answers = session.run(case, 3, 2)
        assert answers is not None, session.failed
        losses += [a["loss"] for a in answers if a["loss"] is not None]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-4)
    assert session.num_starts == 1
    broken = Case("1f1b", 1)  # fewer microbatches than stages: PyTorch refuses
    assert not session.build(broken)
    assert "ValueError" in session.failed[broken]
    assert session.run(cases[0], 1, 1) is not None
    assert session.num_starts == 2
    assert list(session.failed) == [broken]


@pytest.mark.slow(reason="starts pipelines of processes")
def test_pipelines_of_a_gpt_with_codecs_take_the_steps_of_backpropagation() -> None:
    """As far as the codecs allow, and with the bytes that they say."""
    size = Size(width=16, layers=4, batch_size=8, stages=2, threads=1, seed=0, arch="gpt", heads=2, context=8)
    values = 2 * 8 * 8 * 16  # of the activation and of its gradient
    with Session(size, 1e-2, None, None, timeout_s=60) as session:

        def after_20(case: Case) -> tuple[float, float]:
            assert session.build(case), session.failed
            answers = session.run(case, 10, 10)
            assert answers is not None, session.failed
            sent = sum(a["after"]["sent_bytes"] - a["before"]["sent_bytes"] for a in answers)
            return next(a["loss"] for a in answers if a["loss"] is not None), sent / 10

        expected, _ = after_20(BACKPROP)
        plain, sent = after_20(Case("1f1b", 2))
        assert plain == pytest.approx(expected, rel=1e-5)
        assert sent == values * 4
        for wire, more, num_bytes in (("bfloat16", 1e-2, 2), ("8 bits", 2e-2, 66 / 64)):
            loss, sent = after_20(Case(f"1f1b_{wire.replace(' ', '')}", 2, wire_dtype=wire))
            assert loss == pytest.approx(expected, rel=more)
            assert loss != pytest.approx(plain, rel=1e-7)
            assert sent == values * num_bytes
        late = Case("stages_late", 4, observe_prob=1.0, rule="delayed")
        loss, sent = after_20(late)
        assert loss == pytest.approx(expected, rel=0.1)
        assert loss != pytest.approx(plain, rel=1e-3)  # one update late
        assert sent < values * 4 * 1.2  # the same as a pipeline, and headers
        for case in (Case("stages_corrected", observe_prob=1.0, rule="late_correction"),
                     Case("stages_8bits", observe_prob=1.0, wire_dtype="8 bits"),
                     Case("stages_local_4bits", observe_prob=1.0, wire_dtype="4 bits", rule="local_loss")):  # fmt: skip
            loss, sent = after_20(case)
            assert loss == pytest.approx(expected, rel=0.2)
            assert sent < values * (4.8 if case.wire_dtype == "float32" else 1.2)


@pytest.mark.slow(reason="starts processes, each of which loads PyTorch")
def test_gradients_of_microbatches_add_up_to_that_of_the_batch(session: Session) -> None:
    losses = []
    for case in (BACKPROP, Case("backprop_microbatches", 4), Case("1f1b", 4)):
        assert session.build(case), session.failed
        answers = session.run(case, 3, 2)
        assert answers is not None, session.failed
        losses += [a["loss"] for a in answers if a["loss"] is not None]
    # BatchNorm normalises each part on its own, as it does in a schedule.
    assert losses[1] == pytest.approx(losses[2], rel=1e-4)
    assert losses[1] != pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("method", ["stages_bfloat16", "stages_sparse_bfloat16"])
def test_half_as_many_bytes_cross_in_bfloat16(session: Session, method: str) -> None:
    sent = []
    whole = method.removesuffix("_bfloat16")
    prob = 0.25 if "sparse" in method else 1.0
    for case in (Case(whole, observe_prob=prob), Case(method, observe_prob=prob, wire_dtype="bfloat16")):
        assert session.build(case), session.failed
        answers = session.run(case, 2, 20)
        assert answers is not None, session.failed
        sent.append(sum(a["after"]["sent_bytes"] - a["before"]["sent_bytes"] for a in answers))
    assert 0.45 < sent[1] / sent[0] < 0.6


@pytest.mark.slow(reason="starts pipelines of processes anew")
def test_a_process_that_dies_is_said_and_replaced(session: Session) -> None:
    assert session.build(BACKPROP)
    assert session.build(OURS)
    assert session._workers is not None
    session._workers._processes[1].kill()
    assert session.run(OURS, 1, 1) is None
    # The program that has started it may see that, or the other stage.
    assert re.search(r"process 1 ended \(exit status -9\)|stage 1 \(rank 1\) has ended", session.failed[OURS])
    assert session.run(BACKPROP, 1, 1) is not None
    assert session.num_starts == 2


def test_processes_that_never_come_up_are_tried_once() -> None:
    with Session(Size(16, 5, 16, 2, 1, 0), 3e-4, None, None, timeout_s=0.05) as session:
        assert not session.build(BACKPROP)
        assert not session.build(OURS)
        assert session.num_starts == 1
        assert "no answer of process 0, 1 within 0.05 s" in session.failed[OURS]


@pytest.mark.slow(reason="starts pipelines of processes anew")
def test_processes_end_and_rest_while_others_work() -> None:
    with started(SIZE, None, None, 60) as workers:
        pids = [process.pid for process in workers._processes]
        case = {"method": "backprop", "microbatches": None, "variant": None, "observe_prob": None}
        workers.ask({"do": "build", "name": "b", "case": case, "lr": 1e-3}, [0])
        before = [cpu_s(pid) for pid in pids]
        workers.ask({"do": "run", "name": "b", "warm": 0, "steps": 300}, [0])
        worked, rested = (cpu_s(pid) - start for pid, start in zip(pids, before, strict=True))
        assert rested < 0.1 * worked
        with pytest.raises(WorkersError, match="process 0: KeyError"):
            workers.ask({"do": "run", "name": "nobody", "warm": 0, "steps": 1}, [0])
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow(reason="starts pipelines of processes anew")
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no signal for it")
def test_processes_end_with_a_program_that_is_killed_in_the_middle() -> None:
    program = """
from synthgrad.lab.bench.pipeline.network import Size
from synthgrad.lab.bench.pipeline.session import started
workers = started(Size(16, 5, 16, 2, 1, 0), None, None, 60)
case = {"method": "backprop", "microbatches": None, "variant": None, "observe_prob": None}
workers.ask({"do": "build", "name": "b", "case": case, "lr": 1e-3}, [0])
print(*(process.pid for process in workers._processes), flush=True)
workers.ask({"do": "run", "name": "b", "warm": 0, "steps": 10**9}, [0])
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/cmdline").exists() and state(pid) != "Z" for pid in pids):
        assert time.monotonic() < until, "workers outlive the program"
        time.sleep(0.05)
    assert len(pids) == 2


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_training_to_an_accuracy_ends_when_it_is_reached(session: Session) -> None:
    def learned(case: Case, accuracy_pct: float) -> dict[str, object]:
        goal = {"data": "mnist-10k", "accuracy_pct": accuracy_pct, "most_steps": 20, "eval_every": 10}
        assert Goal(**goal)
        return session.learn(case, 3e-3, goal, 60)

    for case in (BACKPROP, Case("zero_bubble", 4, "interleaved"), OURS):
        found = learned(case, 5.0)
        assert found["steps_to_accuracy"] == 10, found
        assert found["time_to_accuracy_s"] > 0
    found = learned(OURS, 99.9)
    assert (found["time_to_accuracy_s"], found["steps_to_accuracy"]) == (None, None)
    assert 5 < found["accuracy_pct"] < 99.9


@pytest.mark.slow(reason="starts processes in namespaces of their own, and waits for slow round trips")
def test_a_link_slows_pipelines_down_and_its_counts_are_recorded() -> None:
    if (reason := unavailable_reason()) is not None:
        pytest.skip(reason)
    link = parse_link("rtt_ms=20,mbit_s=1000")
    gpipe = Case("gpipe", 2)
    metrics, failed = measure(
        [BACKPROP, gpipe, OURS], SIZE, link=link, rounds=1, seconds=0.02, goal=None, data_dir=None
    )
    assert failed == {}
    assert metrics[gpipe]["step_ms_median"] > 20  # up and down once at least
    assert metrics[gpipe]["link_bytes_per_step"] > metrics[gpipe]["sent_bytes_per_step"]
    assert metrics[OURS]["round_trip_ms"] > 20
    assert metrics[OURS]["link_cpu_ms_per_step"] > 0
    assert metrics[BACKPROP]["link_bytes_per_step"] < 1000

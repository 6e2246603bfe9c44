"""Lines of ``bench pipeline`` and their predictions: costs from one-process lines, overheads from a tenth of the others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from synthgrad.core.errors import DataError
from synthgrad.lab.bench.plan.bench import _session_of
from synthgrad.lab.bench.plan.fit import fit, named
from synthgrad.lab.bench.plan.lines import Line, Session, read_sessions
from synthgrad.lab.bench.plan.new import NEW
from synthgrad.lab.bench.plan.predict import Overheads, predict
from synthgrad.lab.records import FILE, read
from tests.lab.cli.helpers import call

ROOT = Path(__file__).parents[4] / "results"
NONE = Overheads(
    **dict.fromkeys(
        ("action_ms", "split_ms", "stage_ms", "message_ms", "copy_ns", "relay_ns", "relay_ms"), 0.0
    ),
    crowd=1.0,
)
BASE = Line("1f1b", stages=2, layers=9, width=512, batch_size=256, microbatches=4)
SESSION = Session("here", (), backprop_ms=40.0)


def raw(method: str, step_ms: float, **cell: Any) -> dict[str, Any]:
    """Return a line of a results file."""
    usual = {"width": 512, "layers": 9, "batch_size": 256, "stages": 2, "threads": 1, "microbatches": None}
    link = {"link": "loopback", "rtt_ms": 0.0, "mbit_s": None, "wire_dtype": "float32", "lr": 3e-4}
    more = {"variant": None, "observe_prob": None, "window": None}
    return {
        **{"schema": 1, "experiment": "bench/pipeline", "tier": "quick", "method": method, "seed": 0},
        "cell": {**usual, **more, **link, **cell},
        **{"steps": 5, "batch_size": 256, "time": {}, "curve": [], "status": "ok", "error": None},
        "metrics": {
            "step_ms_median": step_ms,
            "step_ms_p10": 0.9 * step_ms,
            "step_ms_p90": 1.1 * step_ms,
        },
        **{"config": {}, "env": {}},
    }


def write(folder: Path, *lines: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_sessions_are_lines_of_one_link_and_size_with_the_costs_of_all(tmp_path: Path) -> None:
    one = write(
        tmp_path / "one",
        raw("backprop", 40.0),
        raw("backprop_microbatches", 43.0, microbatches=2),
        raw("backprop_microbatches", 53.0, microbatches=4),
        raw("independent", 44.0),
        raw("1f1b", 30.0, microbatches=2),
        raw("backprop", 50.0, rtt_ms=50.0, mbit_s=100.0, link="emulated"),
        raw("stages", 60.0, observe_prob=1.0, rtt_ms=50.0, mbit_s=100.0, link="emulated"),
    )
    loopback, emulated = read_sessions([one])
    assert [line.method for line in loopback.lines] == ["1f1b"]
    assert (loopback.backprop_ms, emulated.backprop_ms) == (40.0, 50.0)
    # Through the whole batch: (1 · 3 + 3 · 13) / (1 + 9).
    assert loopback.microbatch_ms == emulated.microbatch_ms == {256: pytest.approx(4.2)}
    assert loopback.independent == {(256, 2): pytest.approx(1.1)}
    assert emulated.emulated
    assert not loopback.emulated
    (stages,) = emulated.lines
    assert (stages.share, stages.rtt_ms, stages.mbit_s) == (1.0, 50.0, 100.0)
    assert stages.measured_ms == (60.0, pytest.approx(54.0), pytest.approx(66.0))


def test_connections_know_the_largest_burst_that_they_have_carried() -> None:
    parts = replace(BASE, microbatches=2), replace(BASE, microbatches=16)
    assert replace(SESSION, lines=parts).burst_bytes == 512 * 128 * 4
    assert (
        replace(SESSION, lines=(replace(BASE, method="ddp", microbatches=None), *parts)).burst_bytes
        == 2 << 20
    )
    assert replace(SESSION, lines=(replace(BASE, method="stages", microbatches=None),)).burst_bytes == 0


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "no records of bench pipeline"),
        ([raw("1f1b", 30.0, microbatches=2)], "no measured line of method backprop"),
    ],
)
def test_records_without_costs_are_refused(tmp_path: Path, lines: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_sessions([write(tmp_path / "some", *lines)])
    with pytest.raises(DataError, match="no records"):
        read_sessions([tmp_path / "nowhere"])


def test_a_step_of_one_process_is_divided_by_arithmetic() -> None:
    """Two stages of four hidden layers: 24 units and the ends; a pipeline of one microbatch takes as long as one process."""
    run = predict(replace(BASE, method="gpipe", microbatches=1), SESSION, NONE)
    assert 1e3 * run.step_s == pytest.approx(
        40.0, rel=0.03
    )  # but for updates, which two processes make at once
    forward, backward = (run.stages[0].busy_s[kind] / 2 for kind in ("forward", "backward"))
    wide = 784 / 512
    assert forward / backward == pytest.approx((wide + 3) / (wide + 6))


def test_stages_are_as_fast_as_the_slower_one_with_its_rule() -> None:
    line = replace(BASE, method="stages", microbatches=None, share=1.0)
    run = predict(line, SESSION, NONE)
    wide, out = 784 / 512, 3 * 10 / 512
    unit = (40.0 - 0.85e-6 * (784 * 512 + 7 * 512**2 + 5120)) / (2 * wide + 21 + out)
    lower = (2 * wide + 9 + 2) * unit + 0.85e-6 * (784 * 512 + 3 * 512**2 + 522 * 512)
    assert 1e3 * run.step_s == pytest.approx(lower, rel=1e-6)
    local = predict(replace(line, method="stages_local"), SESSION, NONE)
    assert local.step_s < run.step_s
    assert local.bytes_per_step == pytest.approx(256 * 512 * 4 + 96)


def test_a_round_trip_costs_a_pipeline_one_for_each_microbatch_and_stages_none() -> None:
    """With a rendezvous, 1F1B on two stages waits a round trip for each microbatch; measured records say so too."""
    far = replace(BASE, rtt_ms=200.0, emulated=True)
    for count in (2, 4, 8):
        near_s = predict(replace(BASE, microbatches=count), SESSION, NONE).step_s
        session = replace(SESSION, lines=(replace(BASE, method="ddp", microbatches=None),))
        far_s = predict(replace(far, microbatches=count), session, NONE).step_s
        assert far_s - near_s == pytest.approx(0.2 * count, rel=0.2)
    stages = replace(far, method="stages", microbatches=None, share=1.0)
    near = predict(replace(stages, rtt_ms=0.0), SESSION, NONE)
    assert predict(stages, SESSION, NONE).step_s == pytest.approx(near.step_s, rel=0.02)


def test_overheads_are_found_again_from_lines_that_have_them() -> None:
    true = Overheads(action_ms=1.0, stage_ms=3.0, message_ms=0.4)
    lines = [
        replace(BASE, microbatches=2),
        replace(BASE, microbatches=6),
        replace(BASE, method="stages", microbatches=None, share=1.0),
        replace(BASE, method="stages", microbatches=None, share=0.25),
    ]
    session = replace(SESSION, microbatch_ms={256: 4.0})
    made = []
    for line in lines:
        step_ms = 1e3 * predict(line, session, true).step_s
        made.append((replace(line, measured_ms=(step_ms, step_ms, step_ms)), session))
    found = fit(made)
    for line, _ in made:
        assert line.measured_ms is not None
        assert 1e3 * predict(line, session, found).step_s == pytest.approx(line.measured_ms[0], rel=0.03)
    assert abs(found.stage_ms - 3.0) < abs(Overheads().stage_ms - 3.0)


def test_every_tenth_line_is_named_from_the_first() -> None:
    lines = tuple(replace(BASE, microbatches=k) for k in range(1, 13))
    sessions = [replace(SESSION, lines=lines), replace(SESSION, lines=lines[:9])]
    assert [line.microbatches for line, _ in named(sessions)] == [1, 11, 9]


def test_no_earlier_record_has_a_new_setting() -> None:
    lines = [line for chosen in NEW.values() for line in chosen]
    assert len(lines) == len(set(lines)) == 20
    folders = [p for p in ROOT.glob("bench_pipeline*") if not p.name.startswith("bench_pipeline_new")]
    known = {replace(line, measured_ms=None) for session in read_sessions(folders) for line in session.lines}
    assert not known & set(lines)


def test_new_settings_take_the_last_costs_of_their_network() -> None:
    (first, *_), (late, *_) = NEW["1"], NEW["2"]
    sizes = (first.layers, first.width, first.batch_size)
    old, new, other = (
        replace(SESSION, name=name, backprop_ms=ms, sizes=sizes)
        for name, ms in (("old", 40.0), ("new", 30.0), ("new", 35.0))
    )
    over_a_link = replace(old, backprop_ms=50.0, emulated=True)
    found = _session_of(first, [old, new, other, over_a_link], NEW["1"])
    assert found.backprop_ms == 30.0
    assert found.lines == NEW["1"][:3]  # of its link
    assert found.burst_bytes == 2 << 20
    with pytest.raises(DataError, match="no one-process line of 9 layers × 512 with batch 256"):
        _session_of(late, [replace(old, sizes=(5, 1, 1))], NEW["2"])


def test_the_command_writes_predicted_beside_measured(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "given",
        raw("backprop", 40.0),
        *(raw("1f1b", 30.0 + k, microbatches=k) for k in (2, 4, 8, 16)),
        *(raw("stages", 28.0, observe_prob=p) for p in (1.0, 0.5)),
    )
    out = tmp_path / "out"
    assert call("bench", "plan", "--what", "records", "--records", folder, "--out", out, "--quiet") == 0
    records, problems = read(out / FILE)
    assert not problems
    assert [r.method for r in records] == ["1f1b"] * 4 + ["stages"] * 2
    assert {r.experiment for r in records} == {"plan"}
    assert [r.metrics["is_fitted"] for r in records] == [True] + [False] * 5
    for r in records:
        predicted, measured = r.metrics["predicted_ms"], r.metrics["measured_ms"]
        assert r.metrics["error_pct"] == pytest.approx(100 * (predicted / measured - 1))
    before = (out / FILE).read_bytes()
    assert (
        call("bench", "plan", "--what", "records", "--records", folder, "--out", out, "--quiet", "--resume")
        == 0
    )
    assert (out / FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--what", "records"], "--records is missing"),
        (["--what", "records", "--records", "nowhere"], "nowhere: no records of bench pipeline"),
        (["--what", "new"], "--costs is missing"),
        (["--what", "other"], "what 'other' is unknown to bench plan; accepted: public"),
        (["--what", ""], "has an empty name"),
    ],
)
def test_bad_input_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert call("bench", "plan", *arguments, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error

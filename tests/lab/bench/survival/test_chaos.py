"""``bench chaos``: which faults are drawn, what is read from what stages write, and a short run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from synthgrad.core import ConfigError
from synthgrad.lab.bench.base import choose
from synthgrad.lab.bench.declarations import CHAOS
from synthgrad.lab.bench.survival import chaos
from synthgrad.lab.bench.survival.chaos import ChaosBench
from synthgrad.lab.bench.survival.chaos_faults import KINDS, Fault, drawn_faults
from synthgrad.lab.bench.survival.chaos_restarts import last_weights
from synthgrad.lab.bench.survival.chaos_story import pid_of, story_of
from synthgrad.lab.bench.survival.work import Work, work_of
from synthgrad.lab.wan import unavailable_reason
from tests.lab.cli.helpers import call, records_in


@pytest.mark.parametrize("seed", range(5))
def test_faults_come_every_twenty_to_thirty_seconds(seed: int) -> None:
    found = drawn_faults(seed, 4, 900.0)
    assert found == drawn_faults(seed, 4, 900.0)
    assert found != drawn_faults(seed + 1, 4, 900.0)
    apart = [b.begin_s - a.begin_s for a, b in zip(found, found[1:], strict=False)]
    assert all(20 <= seconds <= 30 for seconds in apart)
    assert {fault.kind for fault in found} == set(KINDS)
    for fault in found:
        lasts_s = fault.end_s - fault.begin_s
        assert lasts_s == 0 if fault.kind == "killed" else 5 <= lasts_s <= 20
        assert fault.end_s < fault.next_s <= 900
        assert 0 <= fault.stage < (3 if fault.kind == "cut" else 4)


def test_a_cut_link_is_nobodys_own_fault() -> None:
    assert not Fault("cut", 1, 0.0, 5.0, 20.0).concerns(1)
    assert Fault("killed", 1, 0.0, 0.0, 20.0).concerns(1)
    assert not Fault("killed", 1, 0.0, 0.0, 20.0).concerns(2)


def written(folder: Path, stage: int, life: int, *lines: dict[str, Any]) -> None:
    path = folder / f"stage{stage}.{life}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def steps(begin: float, end: float, rate: float, first: int = 0, before: int = 200) -> list[dict[str, Any]]:
    times = [begin + k for k in range(int(end - begin) + 1)]
    made = {at: first + round((at - begin) * rate) for at in times}
    return [
        {"at": at, "steps": count, "number": count + before, "num_alone": 7} for at, count in made.items()
    ]


def test_the_pace_of_who_was_not_hit_is_held_against_that_without_faults(tmp_path: Path) -> None:
    """Stage 0 makes 10 steps a second, and 5 from 20 to 30 s, while stage 1 is dead until 24 s."""
    fast, slow, again = steps(0, 20, 10), steps(20, 30, 5, first=200), steps(30, 40, 10, first=250)
    written(tmp_path, 0, 1, {"at": 0.0, "came": 0.0}, *fast, *slow[1:], *again[1:])
    written(tmp_path, 1, 1, {"at": 0.0, "came": 0.0}, *steps(0, 20, 10))
    back = [{"at": 22.0, "came": 22.0}, {"at": 24.0, "begins": 220}]
    written(tmp_path, 1, 2, *back, *steps(25, 40, 10))
    story = story_of(tmp_path, 2, 0.0, None)
    fault = Fault("killed", 1, 20.0, 20.0, 30.0)
    found = story.figures([fault], [10.0, 10.0])
    assert found["survivors_pace_ratio_min"] == found["survivors_pace_ratio_median"] == 0.5
    assert (found["return_s_median"], found["return_s_max"], found["num_never_back"]) == (2.0, 2.0, 0)
    assert (found["num_faults"], found["num_killed"], found["num_cut"]) == (1, 1, 0)
    assert found["steps_last"] == found["steps_stage1"] == 200 + 150
    assert story.figures([fault], [10.0, 10.0], lasted_s=50.0)["kept_ratio"] == 350 / 500
    assert (found["num_alone_stage0"], found["num_alone_stage1"]) == (7, 14)
    paces = {p["elapsed_s"]: (p["steps_per_s_stage0"], p["steps_per_s_stage1"]) for p in story.timeline()}
    assert paces[10.0] == (10.0, 10.0)
    assert paces[24.0] == (5.0, 0.0)
    assert paces[38.0] == (10.0, 10.0)
    assert story.steps_per_s()[0] == pytest.approx(350 / 40, abs=0.3)


def test_a_time_without_a_word_counts(tmp_path: Path) -> None:
    """All die at 20 s, when stage 1 is killed, and are back from 28 s on, until 30 s."""
    for stage in range(2):
        written(tmp_path, stage, 1, {"at": 0.0, "came": 0.0}, *steps(0, 20, 10))
        written(
            tmp_path, stage, 2, {"at": 27.0, "came": 27.0}, {"at": 28.0, "steps": 0}, *steps(28, 30, 10)[1:]
        )
    fault = Fault("killed", 1, 20.0, 20.0, 30.0)
    found = story_of(tmp_path, 2, 0.0, None).figures([fault], [10.0, 10.0])
    assert found["survivors_pace_ratio_min"] == pytest.approx(0.2)


def test_what_was_done_twice_counts_once(tmp_path: Path) -> None:
    """It dies at step 100, and begins again at 60."""
    written(tmp_path, 0, 1, {"at": 0.0, "came": 0.0, "pid": 11}, *steps(0, 10, 10, before=-1))
    assert pid_of(tmp_path, 0) == 11
    written(tmp_path, 0, 2, {"at": 12.0, "came": 12.0, "pid": 12}, *steps(12, 20, 10, before=59))
    found = story_of(tmp_path, 1, 0.0, None).figures([], [10.0], lasted_s=20.0)
    assert found["steps_last"] == 180
    assert found["kept_ratio"] == 140 / 200
    assert pid_of(tmp_path, 0) == 12
    assert pid_of(tmp_path, 1) is None


def test_one_that_never_came_back_is_counted(tmp_path: Path) -> None:
    written(tmp_path, 0, 1, {"at": 0.0, "came": 0.0}, *steps(0, 20, 10))
    written(tmp_path, 0, 2, {"at": 22.0, "came": 22.0})
    found = story_of(tmp_path, 1, 0.0, None).figures([], [10.0])
    assert found["num_never_back"] == 1
    assert "return_s_median" not in found
    assert found["steps_last"] == 200


def test_lines_say_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaos, "unavailable_reason", lambda: None)
    (setting,) = ChaosBench().settings(choose(CHAOS, "quick", seeds=(3,)))
    hit, calm, peer = setting.lines
    assert [r.method for r in setting.lines] == ["with_faults", "without_faults", "1f1b_restarts"]
    assert (hit.cell["rule"], peer.cell["rule"], peer.cell["synthetic_inputs"]) == ("cdni", "backprop", False)
    assert peer.config["faults"] == hit.config["faults"]
    assert hit.cell["stages"] == 4
    drawn = drawn_faults(3, 4, 900.0)
    assert [f["begin_s"] for f in hit.config["faults"]] == [f.begin_s for f in drawn]
    assert "faults" not in calm.config


def test_more_stages_than_layers_and_a_machine_without_links_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chaos, "unavailable_reason", lambda: None)
    with pytest.raises(ConfigError, match="--stages 9 of 8 layers"):
        ChaosBench().settings(choose(CHAOS, "smoke", stages=(9,)))
    monkeypatch.setattr(chaos, "unavailable_reason", lambda: "an emulated link needs root")
    with pytest.raises(ConfigError, match="needs root"):
        ChaosBench().settings(choose(CHAOS, "smoke"))


def digits(layers: int = 8) -> Work:
    return work_of("fcn", "mnist-10k", None, width=8, layers=layers, batch_size=64, seed=2)


def plays(layers: int = 4) -> Work:
    return work_of("gpt", "shakespeare-50k", None, width=8, layers=layers, batch_size=64, seed=2)


@pytest.mark.parametrize("make", [digits, plays])
def test_every_process_finds_the_same_batch_and_the_same_weights(make: Callable[[], Work]) -> None:
    one, other = make().batches(), make().batches()
    for number in (0, 1, 200, 5):
        x, y = one(number)
        again_x, again_y = other(number)
        assert (x == again_x).all()
        assert (y == again_y).all()
    assert not (one(0)[1] == one(1)[1]).all()
    models = make().model(), make().model()
    for p, again in zip(*(m.parameters() for m in models), strict=True):
        assert (p == again).all()


@pytest.mark.parametrize(
    ("work", "stages"), [(digits(8), 4), (digits(9), 4), (digits(3), 3), (plays(4), 4), (plays(5), 3)]
)
def test_the_network_has_a_layer_or_more_in_each_stage(work: Work, stages: int) -> None:
    net = work.decoupled(stages, "local_loss", synthetic=False)
    assert len(net.interfaces) == stages - 1
    assert all(module.parameters for module in net.graph.modules)
    given, hidden, output = work.example(3)
    names = [name for name, _ in work.model().named_children()]
    for name, module in work.model().named_children():
        given = module(given)
        assert given.shape == (output if name == names[-1] else hidden).shape


@pytest.mark.parametrize(("work", "chance"), [(digits(3), 90.0), (plays(1), 6.0)])
def test_an_untrained_network_is_about_as_good_as_chance(work: Work, chance: float) -> None:
    assert work.error(work.model()) == pytest.approx(chance, rel=0.15)


@pytest.mark.slow(reason="stages train for a minute while one is killed, frozen or cut off")
@pytest.mark.skipif(unavailable_reason() is not None, reason="links cannot be emulated here")
def test_stages_survive_what_happens_to_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("bench", "chaos", "--tier", "smoke", "--out", tmp_path) == 0
    hit, calm, peer = records_in(tmp_path)
    assert (hit["status"], calm["status"], peer["status"]) == ("ok", "ok", "ok")
    assert peer["metrics"]["steps_last"] > 100
    assert hit["metrics"]["num_faults"] >= 1
    assert hit["metrics"]["num_never_back"] == 0
    assert hit["metrics"]["survivors_pace_ratio_median"] > 0.5
    assert hit["metrics"]["steps_last"] > 500
    assert hit["metrics"]["test_error_pct"] < 60
    assert hit["curve"]
    assert "survivors' pace" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow(reason="stages of a GPT train for a minute while one is killed, frozen or cut off")
@pytest.mark.skipif(unavailable_reason() is not None, reason="links cannot be emulated here")
def test_a_language_model_survives_too(tmp_path: Path) -> None:
    arguments = ("--arch", "gpt", "--tier", "smoke", "--methods", "stages", "--out", tmp_path)
    assert call("bench", "chaos", *arguments) == 0
    hit, calm = records_in(tmp_path)
    assert (hit["status"], calm["status"]) == ("ok", "ok")
    assert hit["cell"]["arch"] == "gpt"
    assert 3.0 < hit["metrics"]["val_bits_per_char"] < 6.0


def test_ranks_begin_again_at_the_last_step_that_all_have_saved(tmp_path: Path) -> None:
    for rank, saved in enumerate([(250, 500), (250, 500, 750)]):
        for step in saved:
            torch.save({"model": {f"weight{rank}": torch.tensor(step)}}, tmp_path / f"rank{rank}.{step}.pt")
    found = last_weights(tmp_path, 2)
    assert found == {"weight0": torch.tensor(500), "weight1": torch.tensor(500)}
    assert last_weights(tmp_path, 3) is None

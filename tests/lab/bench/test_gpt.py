"""``bench gpt``: which lines there are, that the loop is a true peer, and what each rule holds, by arithmetic."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from synthgrad.core import ConfigError
from synthgrad.lab.bench import gpt as bench_gpt
from synthgrad.lab.bench.base import choose
from synthgrad.lab.bench.declarations import GPT, GPT_METHODS, GptScope
from synthgrad.lab.bench.gpt import GptBench, GptCase, GptSize, make, observe
from synthgrad.lab.bench.memory import probe as probing
from synthgrad.lab.bench.memory.held_bytes import HeldBytes
from synthgrad.lab.bench.memory.probe import Memory, probe
from synthgrad.lab.bench.steps import HAND_WRITTEN
from synthgrad.lab.bench.turns import TimedStep

SMOKE: GptScope = choose(GPT, "smoke")
SIZE = GptSize(seed=0, layers=4, width=8, context=6, vocabulary=11, batch_size=3, modules=2)
BY_HAND, BACKPROP = GptCase("backprop", HAND_WRITTEN), GptCase("backprop", "plain")
LOCAL = GptCase("local_loss", blocks=0)


def deeper(layers: int, modules: int) -> GptSize:
    return replace(SIZE, layers=layers, modules=modules)


@cache
def saved(case: GptCase, size: GptSize = SIZE) -> int:
    """Return the most bytes held, measured in this process."""
    scope = replace(SMOKE, rounds=1, heads=2)
    return observe(scope, size, case)["saved_bytes_peak"]


def lines(**given: Any) -> list[tuple[Any, ...]]:
    found = [line for setting in GptBench().settings(choose(GPT, "smoke", **given)) for line in setting.lines]
    names = ("accumulate", "engine", "variant", "versions")
    return [(line.method, *(line.cell[name] for name in names)) for line in found]


# Lines


def test_every_method_has_its_lines_after_the_hand_written_loop() -> None:
    assert lines(accumulate=(1,)) == [
        ("backprop", 1, "hand-written loop", None, None),
        ("backprop", 1, "plain", None, None),
        ("delayed", 1, "in-process", "lag 1", None),
        ("cdni", 1, "in-process", None, None),
        ("local_loss", 1, "in-process", "linear head", None),
        ("local_loss", 1, "in-process", "1 private block", None),
        ("local_loss", 1, "in-process", "2 private blocks", None),
        ("interlocked", 1, "in-process", "linear head", None),
        ("interlocked", 1, "in-process", "1 private block", None),
        ("head_gradient", 1, "in-process", "linear head", None),
        ("late_correction", 1, "in-process", "lag 4, linear head", None),
        ("late_correction", 1, "in-process", "lag 4, 1 private block", None),
        ("late_correction", 1, "in-process", "lag 16, linear head", None),
    ]


def test_updates_of_several_batches_have_late_gradients_by_every_number_of_versions() -> None:
    assert lines(accumulate=(4,)) == [
        ("backprop", 4, "hand-written loop", None, None),
        ("backprop", 4, "plain", None, None),
        ("delayed", 4, "in-process", "lag 3, all versions", None),
        ("delayed", 4, "in-process", "lag 3, 2BW", 2),
        ("delayed", 4, "in-process", "lag 3, PACI", 1),
    ]


@pytest.mark.parametrize(("modules", "accumulate", "lag"), [(2, 4, 3), (4, 4, 1), (3, 8, 3), (3, 2, 1)])
def test_late_gradients_are_as_late_as_one_update_allows(modules: int, accumulate: int, lag: int) -> None:
    found = lines(modules=(modules,), accumulate=(accumulate,), methods=("delayed",))
    assert [variant for _, _, _, variant, _ in found[1:]] == [
        f"lag {lag}, {words}" for words in ("all versions", "2BW", "PACI")
    ]


def test_methods_that_learn_from_one_batch_alone_have_no_larger_updates() -> None:
    assert [line[:2] for line in lines(methods=("cdni",))] == [("backprop", 1), ("cdni", 1)]


def test_a_line_names_every_parameter() -> None:
    (setting,) = GptBench().settings(choose(GPT, "smoke", accumulate=(1,), methods=("late_correction",)))
    line = setting.lines[2]
    assert line.cell == {
        **{"arch": "gpt", "layers": 4, "width": 16, "heads": 2, "context": 8, "vocabulary": 20},
        **{"batch_size": 4, "modules": 2, "accumulate": 1, "threads": 1, "engine": "in-process"},
        **{"variant": "lag 4, 1 private block", "delay": 4, "versions": None},
    }
    assert (line.experiment, line.batch_size) == ("bench/gpt", 4)
    assert line.config["optimizer"] == "AdamW, fused"
    rule = line.config["rule"]
    assert (rule["delay"], rule["head"]) == (4, "tokens")
    assert setting.lines[0].config["rule"] is None


def test_another_precision_stands_in_the_line() -> None:
    (setting,) = GptBench().settings(choose(GPT, "smoke", accumulate=(1,), precision="bfloat16"))
    assert {line.cell["precision"] for line in setting.lines} == {"bfloat16"}
    assert {line.tier for line in setting.lines} == {"smoke"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"heads": 3}, "width 16 with 3 heads: expected a multiple of 6"),
        ({"modules": (5,)}, "5 modules of 4 blocks"),
        ({"modules": (4,), "accumulate": (2,)}, "--accumulate 2 with 4 modules: .* take --accumulate 1, or 3 or more"),
        ({"methods": ("cdni",), "accumulate": (2, 4)}, "--accumulate 2,4: .* backprop and delayed alone"),
        ({"methods": ("sobolev",)}, "method 'sobolev' is unknown to bench gpt; accepted: backprop, delayed"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GptBench().settings(choose(GPT, "smoke", **given))


def test_two_versions_suffice_up_to_as_many_modules_as_an_update_has_batches_and_one() -> None:
    assert lines(layers=(5,), modules=(5,), accumulate=(4,))
    with pytest.raises(ConfigError, match="take --accumulate 1, or 5 or more"):
        lines(layers=(6,), modules=(6,), accumulate=(4,))


# A true peer


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_loop_trains_as_backpropagation_does(accumulate: int) -> None:
    found: list[list[Tensor]] = []
    for case in (BY_HAND, BACKPROP):
        update, alive = make(case, replace(SIZE, accumulate=accumulate), heads=2)
        before = alive[0].clone()
        for _ in range(3):
            update()
        assert not torch.equal(before, alive[0])
        found.append(alive)
    ours, theirs = found
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", GPT_METHODS)
def test_every_method_updates_every_module(method: str) -> None:
    scope = replace(SMOKE, methods=(method,), accumulate=(1,))
    (size,) = GptBench().sizes(scope)
    for case in GptBench().cases(scope, size)[1:]:
        update, alive = make(case, SIZE, heads=2)
        trained = [t for t in alive if t.requires_grad]
        before = [t.detach().clone() for t in trained]
        for _ in range(case.delay + 2):
            update()
        assert not [t for t, b in zip(trained, before, strict=True) if torch.equal(t, b)], case


# What is held


def test_the_engine_of_backpropagation_holds_what_the_loop_holds() -> None:
    assert saved(BACKPROP) == saved(BY_HAND)
    four = replace(SIZE, accumulate=4)
    assert saved(BACKPROP, four) == saved(BY_HAND, four) == saved(BY_HAND)


def test_backpropagation_holds_more_with_every_block() -> None:
    per_block = saved(BY_HAND, deeper(5, 2)) - saved(BY_HAND)
    assert per_block > 0
    assert saved(BY_HAND, deeper(8, 2)) == saved(BY_HAND) + 4 * per_block


@pytest.mark.parametrize("case", [LOCAL, GptCase("local_loss", blocks=1), GptCase("cdni")], ids=str)
def test_credit_at_once_holds_a_module_however_many_there_are(case: GptCase) -> None:
    assert saved(case, deeper(8, 4)) == saved(case, deeper(4, 2)) < saved(BY_HAND)


def test_interlocked_modules_hold_two_and_no_more() -> None:
    case = GptCase("interlocked", blocks=1)
    assert saved(case, deeper(12, 6)) == saved(case, deeper(8, 4)) < saved(BY_HAND, deeper(8, 4))
    assert saved(case, deeper(8, 4)) > saved(GptCase("local_loss", blocks=1), deeper(8, 4))


def test_a_late_gradient_holds_a_graph_of_the_lower_module_for_every_step_of_its_lag() -> None:
    held = [saved(GptCase("delayed", delay=lag)) for lag in (1, 2, 3)]
    assert held[2] - held[1] == held[1] - held[0] > 0
    assert held[0] > saved(BY_HAND)


def test_in_a_deeper_network_lags_add_up() -> None:
    case = GptCase("delayed", delay=1)
    per_batch = saved(GptCase("delayed", delay=2)) - saved(case)
    # Three interfaces: the lower modules, half as large, hold three, two and one graph more than in the step itself.
    assert saved(case, deeper(4, 4)) > saved(case) + per_batch // 2


def test_the_current_weights_alone_hold_less_than_copies() -> None:
    size = replace(SIZE, accumulate=4)
    free, two, one = (
        saved(GptCase("delayed", delay=3, versions=v, accumulates=True), size) for v in (None, 2, 1)
    )
    assert free == two > one > saved(BY_HAND, size)


def test_bfloat16_holds_less() -> None:
    halved = observe(replace(SMOKE, rounds=1, heads=2, precision="bfloat16"), SIZE, BY_HAND)
    assert halved["saved_bytes_peak"] < saved(BY_HAND)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Let an update of a line take 8 ms and one of the loop 4, both twice as long in every second round."""
    updates: dict[str, list[int]] = {"settled": [], "line": [], "loop": []}
    real = bench_gpt.make

    def made(case: GptCase, size: GptSize, **how: Any) -> Any:
        _, alive = real(case, size, **how)
        name = "loop" if case.engine == HAND_WRITTEN else "line"
        return lambda: updates[name].append(len(updates[name])), alive

    def counted(step: Any, alive: Any, memory: Any, rounds: int, settle: int) -> dict[str, float]:
        updates["settled"].append(settle)
        return {"saved_bytes_peak": 8, "peak_bytes": 9, "step_ms_median": -1.0}

    def timed(turns: dict[str, TimedStep], rounds: int, device: str) -> dict[str, str]:
        for k in range(rounds):
            for name, turn in turns.items():
                turn.step()
                turn.times_ms.append({"own": 8.0, "reference": 4.0}[name] * (1 + k % 2))
        return {}

    monkeypatch.setattr(bench_gpt, "make", made)
    monkeypatch.setattr(bench_gpt, "probe", counted)
    monkeypatch.setattr(bench_gpt, "take_turns", timed)
    return updates


def test_times_are_those_of_a_batch_and_ratios_are_taken_in_each_round(clock: dict[str, list[int]]) -> None:
    late = GptCase("delayed", delay=3, accumulates=True)
    found = observe(replace(SMOKE, heads=2, rounds=3), replace(SIZE, accumulate=4), late)
    assert (found["saved_bytes_peak"], found["peak_bytes"]) == (8, 9)
    assert found["step_ms_median"] == 8.0 / 4
    assert [found[f"ratio_step_to_backprop{end}"] for end in ("", "_p10", "_p90")] == [2.0] * 3
    assert len(clock["loop"]) == 1 + 3, "the loop makes an update before it is timed"


def test_what_comes_before_is_enough_for_the_lowest_module(clock: dict[str, list[int]]) -> None:
    late = GptCase("delayed", delay=3, accumulates=True)
    observe(replace(SMOKE, heads=2), replace(SIZE, accumulate=4), late)
    observe(replace(SMOKE, heads=2), deeper(4, 4), GptCase("late_correction", delay=4, blocks=1))
    observe(replace(SMOKE, heads=2), SIZE, LOCAL)
    assert clock["settled"] == [2, 13, 1]


def test_a_line_that_fails_in_its_turn_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_gpt, "take_turns", lambda *_: {"own": "ValueError: no memory"})
    with pytest.raises(RuntimeError, match="in turns with the loop: ValueError: no memory"):
        observe(replace(SMOKE, rounds=1, heads=2), SIZE, LOCAL)


def test_what_began_before_the_block_is_not_missed() -> None:
    """Counting one step would miss the graphs of the steps before, which a late gradient keeps."""
    case = GptCase("delayed", delay=3)
    update, alive = make(case, SIZE, heads=2)
    for _ in range(4):
        update()
    with HeldBytes(alive) as one:
        update()
    assert one.peak < saved(case)


# Figures


@pytest.mark.slow(reason="every line is measured in a process with a PyTorch of its own")
def test_a_line_is_compared_with_the_loop() -> None:
    (setting,) = GptBench().settings(choose(GPT, "smoke", accumulate=(1,), methods=("local_loss",)))
    loop, linear, private, twice = setting.measure()
    assert {r.status for r in (loop, linear, private, twice)} == {"ok"}
    figures = ("saved_bytes_peak", "peak_bytes", "step_ms_median", "step_ms_p10", "step_ms_p90")
    steps = ("ratio_step_to_backprop", "ratio_step_to_backprop_p10", "ratio_step_to_backprop_p90")
    ratios = ("ratio_to_backprop", "ratio_peak_to_backprop", *steps)
    assert set(loop.metrics) >= {"saved_bytes_peak", "step_ms_median", "ratio_to_backprop"}
    assert set(loop.metrics) <= {*figures, *ratios}
    assert loop.metrics["ratio_to_backprop"] == 1
    held = [r.metrics["ratio_to_backprop"] for r in (linear, private, twice)]
    assert held == sorted(set(held))
    assert held[1] < 1


def test_ratios_are_taken_to_the_loop_and_not_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(observe: Any, scope: Any, size: Any, case: GptCase) -> dict[str, float]:
        held = {HAND_WRITTEN: 2.0, "plain": 4.0}.get(case.engine, 3.0)
        return {"saved_bytes_peak": held, "peak_bytes": held, "step_ms_median": held}

    monkeypatch.setattr(probing, "in_own_process", measured)
    (setting,) = GptBench().settings(choose(GPT, "smoke", accumulate=(1,), methods=("backprop", "delayed")))
    assert [r.metrics["ratio_step_to_backprop"] for r in setting.measure()] == [1.0, 2.0, 1.5]


def test_steps_of_a_probe_are_settled_before_they_are_timed_and_counted() -> None:
    """Steps grow dearer until the third: what is timed and counted is what comes after."""
    done: list[int] = []
    kept: list[Tensor] = []
    weight = torch.ones(64, requires_grad=True)

    def step() -> None:
        done.append(len(done))
        kept.append(weight * torch.ones(64))  # a graph that is kept over three steps
        del kept[:-3]

    found = probe(step, [weight], Memory("cpu"), rounds=2, settle=3)
    assert len(done) == 3 + 2 + 3
    assert found["saved_bytes_peak"] == 3 * 64 * 4


def test_what_a_line_has_compared_itself_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop of another process ran at another time, when the machine had another speed."""

    def measured(observe: Any, scope: Any, size: Any, case: GptCase) -> dict[str, float | None]:
        held = 2.0 if case.engine == HAND_WRITTEN else 3.0
        times = {"step_ms_median": 5 * held, "ratio_step_to_backprop": held / 2.5}
        return {"saved_bytes_peak": held, "peak_bytes": None, **times}

    monkeypatch.setattr(probing, "in_own_process", measured)
    (setting,) = GptBench().settings(choose(GPT, "smoke", accumulate=(1,), methods=("delayed",)))
    loop, late = setting.measure()
    assert (loop.metrics["ratio_step_to_backprop"], late.metrics["ratio_step_to_backprop"]) == (0.8, 1.2)
    assert late.metrics["ratio_to_backprop"] == 1.5
    assert late.metrics["peak_bytes"] is None

"""What ``bench pipeline`` measures, how the network is divided, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from synthgrad.core import ConfigError
from synthgrad.core.errors import DataError
from synthgrad.lab.bench.base import choose
from synthgrad.lab.bench.declarations import PIPELINE
from synthgrad.lab.bench.pipeline import bench, division
from synthgrad.lab.bench.pipeline.bench import PipelineBench
from synthgrad.lab.bench.pipeline.cases import DEFAULT, METHODS, SCHEDULES, Case, cases_of
from synthgrad.lab.bench.pipeline.division import planned_names, split_names
from synthgrad.lab.bench.pipeline.learn import goal_of
from synthgrad.lab.bench.pipeline.network import Size, workload_of
from synthgrad.lab.bench.pipeline.peers import owners_of
from synthgrad.planner import CostTable, ModuleCost, StageCost

SMOKE: Any = PIPELINE.tiers["smoke"]


def counts(cases: list[Case], method: str, variant: str | None = None) -> list[int | None]:
    return [k.microbatches for k in cases if (k.method, k.variant) == (method, variant)]


def test_backprop_comes_first_and_each_schedule_has_several_microbatches() -> None:
    cases = cases_of(METHODS, 2, 8, 256)
    assert cases[0] == Case("backprop")
    assert list(dict.fromkeys(k.method for k in cases)) == list(METHODS)
    for method, variant in (
        ("gpipe", None),
        ("1f1b", None),
        ("zero_bubble", "interleaved"),
        ("zero_bubble", "zbv"),
    ):
        assert counts(cases, method, variant) == [2, 4, 8, 16]
    assert counts(cases, "backprop_microbatches") == [2, 4, 8, 16]
    assert [(k.observe_prob, k.wire_dtype) for k in cases if k.is_ours and k.rule == "cdni"] == [
        (1.0, "float32"), (0.25, "float32"), (1.0, "bfloat16"), (0.25, "bfloat16"), (1.0, "8 bits"),
    ]  # fmt: skip
    assert [(k.method, k.wire_dtype) for k in cases if k.rule == "local_loss"] == [
        ("stages_local", "float32"),
        ("stages_local_bfloat16", "bfloat16"),
        ("stages_local_8bits", "8 bits"),
        ("stages_local_4bits", "4 bits"),
    ]
    encoded = {(k.method, k.schedule, k.wire_dtype) for k in cases if k.is_pipeline}
    assert {found for found in encoded if found[0] not in SCHEDULES} == {
        ("gpipe_bfloat16", "gpipe", "bfloat16"),
        ("gpipe_8bits", "gpipe", "8 bits"),
        ("1f1b_bfloat16", "1f1b", "bfloat16"),
        ("1f1b_8bits", "1f1b", "8 bits"),
    }
    assert len(set(cases)) == len(cases)


def test_what_a_schedule_does_not_take_is_left_out() -> None:
    assert counts(cases_of(METHODS, 4, 8, 256), "1f1b") == [4, 8, 16]  # as many microbatches as stages
    assert counts(cases_of(METHODS, 3, 8, 48), "zero_bubble", "interleaved") == [
        2,
        4,
        8,
    ]  # 16 are not 5 rounds
    assert counts(cases_of(METHODS, 2, 8, 12), "gpipe") == [2, 4]  # 12 examples have no 8 equal parts
    assert counts(cases_of(METHODS, 2, 8, 8), "gpipe") == [2, 4]  # BatchNorm needs two examples
    assert not [
        k for k in cases_of(METHODS, 2, 3, 256) if k.method == "zero_bubble"
    ]  # 4 parts, 3 hidden layers


def test_late_gradients_have_several_microbatches_and_are_one_update_late() -> None:
    late = [k for k in cases_of(("stages_late_8bits",), 4, 8, 256) if k.is_ours]
    assert [(k.microbatches, k.window(4)) for k in late] == [(4, 1), (8, 2), (16, 5)]
    assert {(k.rule, k.wire_dtype, k.schedule) for k in late} == {("delayed", "8 bits", None)}
    assert Case("stages", observe_prob=1.0).window(4) is None
    near = [k for k in cases_of(("stages_interlocked",), 4, 8, 256) if k.is_ours]
    assert [(k.microbatches, k.window(4)) for k in near] == [(2, 2), (4, 4), (8, 8), (16, 16)]
    changes: dict[str, Any] = {"methods": ("stages_late",), "stages": (2,), "batch_sizes": (16,)}
    (setting,) = PipelineBench().settings(replace(SMOKE, **changes))
    assert [line.cell["window"] for line in setting.lines[1:]] == [2, 4, 8]
    assert setting.lines[-1].config["rule"] == "true gradient, one update late"


def test_only_what_is_named_is_measured_beside_backprop() -> None:
    assert cases_of(("stages",), 2, 8, 256) == [Case("backprop"), Case("stages", observe_prob=1.0)]


@pytest.mark.parametrize(
    ("layers", "parts", "sizes"), [(9, 2, [4, 5]), (9, 4, [2, 2, 2, 3]), (10, 2, [4, 6]), (3, 2, [1, 2])]
)
def test_parts_hold_every_layer_once(layers: int, parts: int, sizes: list[int]) -> None:
    model = workload_of(Size(8, layers, 4, 2, 1, 0)).model()
    found = split_names(model, parts)
    assert [len(names) for names in found] == sizes
    assert sum(found, []) == [name for name, _ in model.named_children()]


@pytest.mark.parametrize(("with_rule", "cut"), [(False, "layer2"), (True, "layer1")])
def test_planned_parts_are_even_with_what_the_rule_costs(
    with_rule: bool, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = workload_of(Size(8, 5, 4, 2, 1, 0, cuts="planned"))
    model = work.model()

    def profiled(model: object, example: object, *, rule: object, candidates: list[str], **more: Any) -> Any:
        assert candidates == ["layer1", "layer2", "layer3", "layer4"]
        credit_s = 0.0 if rule is None else 5.0
        costs = [StageCost(forward_s=1.0, backward_s=1.0, credit_s=credit_s)] * 4 + [StageCost(0.25, 0.25)]
        rows = [ModuleCost(name, cost) for name, cost in zip([*candidates, "output"], costs, strict=True)]
        return CostTable(tuple(rows), batch_size=4)

    monkeypatch.setattr(division, "profile_model", profiled)
    found = planned_names(work, model, 2, work.rule("cdni")[0] if with_rule else None)
    assert sum(found, []) == [name for name, _ in model.named_children()]
    assert found[0][-1] == cut


@pytest.mark.parametrize("arch", ["fcn", "gpt"])
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_planned_division_is_measured(arch: str, optimizer: str) -> None:
    size = Size(8, 4, 4, 2, 1, 0, arch, heads=2, context=4, optimizer=optimizer, cuts="planned")
    work = workload_of(size)
    model = work.model()
    for rule in (None, work.rule("cdni")[0], work.rule("local_loss")[0]):
        found = planned_names(work, model, 2, rule)
        assert len(found) == 2
        assert sum(found, []) == [name for name, _ in model.named_children()]


def test_planned_cuts_stand_in_the_cell() -> None:
    (setting,) = PipelineBench().settings(replace(SMOKE, cuts="planned", methods=("stages",)))
    assert setting.lines[-1].cell["cuts"] == "planned"
    (setting,) = PipelineBench().settings(replace(SMOKE, methods=("stages",)))
    assert "cuts" not in setting.lines[-1].cell


def test_what_is_slow_and_unequal_stands_in_the_cell() -> None:
    changes: dict[str, Any] = {"slow": "1:2.5", "methods": ("stages",), "stages": (2,)}
    (setting,) = PipelineBench().settings(replace(SMOKE, **changes))
    assert setting.lines[-1].cell["slow"] == [1.0, 2.5]
    (setting,) = PipelineBench().settings(replace(SMOKE, methods=("stages",)))
    assert not {"slow", "down_mbit_s", "jitter_ms"} & set(setting.lines[-1].cell)


def test_an_unequal_link_stands_in_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "unavailable_reason", lambda: None)
    link = "rtt_ms=5,mbit_s=20,down_mbit_s=2,jitter_ms=1"
    (setting,) = PipelineBench().settings(replace(SMOKE, link=link))
    cell = setting.lines[0].cell
    assert (cell["mbit_s"], cell["down_mbit_s"], cell["jitter_ms"]) == (20, 2, 1)
    assert "round trip 5 ms, jitter 1 ms, 20 and 2 Mbit/s" in setting.label


def test_parts_lie_in_processes_as_the_schedules_want_them() -> None:
    assert owners_of(Case("gpipe", 2), 3) == [0, 1, 2]
    assert owners_of(Case("zero_bubble", 2, "interleaved"), 2) == [0, 1, 0, 1]
    assert owners_of(Case("zero_bubble", 2, "zbv"), 2) == [0, 1, 1, 0]


def test_a_line_names_all_its_settings() -> None:
    (setting,) = PipelineBench().settings(SMOKE)
    assert [line.method for line in setting.lines if line.cell["microbatches"] in (None, 4)] == [
        *("backprop", "backprop_all_threads", "backprop_microbatches", "independent", "ddp"),
        *("gpipe", "1f1b", "zero_bubble", "zero_bubble"),
        *("stages", "stages_sparse", "stages_local"),
    ]
    assert [line.config.get("rule") for line in setting.lines[-3:]] == [
        *["cdni, linear M"] * 2,
        "local loss",
    ]
    assert setting.lines[-2].cell == {
        "width": 16, "layers": 5, "batch_size": 8, "stages": 2, "threads": 1, "microbatches": None,
        "variant": None, "observe_prob": 0.25, "window": "follows the link", "wire_dtype": "float32",
        "link": "loopback", "rtt_ms": 0.0, "mbit_s": None, "lr": 3e-4,
    }  # fmt: skip
    assert setting.lines[-1].experiment == "bench/pipeline"
    assert len({str(line.cell) + line.method for line in setting.lines}) == len(setting.lines)


def test_an_emulated_link_stands_in_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "unavailable_reason", lambda: None)
    (setting,) = PipelineBench().settings(replace(SMOKE, link="rtt_ms=50,mbit_s=1000"))
    cell = setting.lines[0].cell
    assert (cell["link"], cell["rtt_ms"], cell["mbit_s"]) == ("emulated", 50.0, 1000.0)
    assert "round trip 50 ms, 1000 Mbit/s" in setting.label


def test_a_link_that_is_not_permitted_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "unavailable_reason", lambda: "this is user 7, not root")
    with pytest.raises(ConfigError, match="user 7, not root"):
        PipelineBench().settings(replace(SMOKE, link="rtt_ms=50"))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"methods": ("dni",)}, "unknown to bench pipeline; accepted: backprop, backprop_all_threads"),
        ({"stages": (5,)}, "5 stages of 5 layers"),
        ({"stages": (20,), "layers": (40,)}, "20 stages of 40 layers: .* at most 16"),
        ({"batch_sizes": (9,)}, "batch size 9 for 2 stages: expected a multiple of 2 from 4 to 10000"),
        ({"batch_sizes": (2,)}, "batch size 2"),
        ({"batch_sizes": (20_000,)}, "batch size 20000"),
        ({"methods": ("zero_bubble",), "layers": (4,)}, "zero_bubble two layers or blocks in each"),
        ({"link": "rtt=5"}, "unknown key 'rtt'"),
        (
            {"slow": "1:2"},
            "--slow with method 'backprop': stages that sleep are measured with the methods stages",
        ),
        ({"slow": "4:2", "methods": ("stages",)}, "--slow names stage 4: expected 0 to 1"),
        ({"slow": "1:0.5", "methods": ("stages",)}, "'1:0.5' is no stage with a factor of at least 1"),
        ({"slow": "1=2", "methods": ("stages",)}, "'1=2' is no stage with a factor"),
        ({"slow": "1:2,1:3", "methods": ("stages",)}, "stage 1 is given twice"),
        ({"arch": "gpt", "learn": True}, "--learn with --arch gpt, whose tokens are random: train it with"),
        ({"arch": "gpt", "widths": (12,)}, "width 12 with 4 heads: expected a multiple of 8"),
        ({"arch": "gpt", "stages": (6,), "batch_sizes": (12,)}, "6 stages of 5 blocks"),
    ],
)
def test_what_it_does_not_measure(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        PipelineBench().settings(replace(SMOKE, **changes))


def test_another_number_of_stages_is_no_tier_but_a_link_is() -> None:
    assert choose(PIPELINE, "quick", stages=(4,)).tier == "custom"
    assert choose(PIPELINE, "quick", link="rtt_ms=5").tier == "quick"


def test_the_sizes_of_the_issue_are_the_defaults() -> None:
    quick: Any = PIPELINE.tiers["quick"]
    assert (quick.widths, quick.layers, quick.batch_sizes, quick.stages, quick.threads) == (
        (512,), (9,), (256,), (2,), 1,
    )  # fmt: skip
    assert quick.rounds >= 5
    assert quick.methods == DEFAULT
    full: Any = PIPELINE.tiers["full"]
    assert set(full.methods) - set(DEFAULT) == {"stages_bfloat16", "stages_sparse_bfloat16"}


def test_a_gpt_has_sizes_and_lines_of_its_own() -> None:
    quick: Any = PIPELINE.networks["gpt"]["quick"]
    assert (quick.layers, quick.widths, quick.batch_sizes, quick.context) == ((4,), (128,), (32,), 64)
    assert (quick.stages, quick.precision) == ((4,), "bfloat16")
    (setting,) = PipelineBench().settings(quick)
    found = {(line.method, line.cell["microbatches"]) for line in setting.lines}
    assert {(method, 8) for method in ("1f1b", "1f1b_bfloat16", "1f1b_8bits", "gpipe_8bits")} <= found
    assert {("stages_local_8bits", None), ("stages_8bits", None), ("stages_local_4bits", None)} <= found
    for line in setting.lines:
        assert (line.cell["arch"], line.cell["context"], line.cell["precision"]) == ("gpt", 64, "bfloat16")
        assert line.cell["optimizer"] == "muon"
    (other,) = PipelineBench().settings(SMOKE)
    assert not {"arch", "precision", "context", "optimizer"} & set(other.lines[0].cell)


@pytest.mark.parametrize(("blocks", "parts"), [(4, 2), (4, 4), (5, 2)])
def test_a_gpt_is_divided_between_blocks(blocks: int, parts: int) -> None:
    model = workload_of(Size(16, blocks, 4, 2, 1, 0, arch="gpt", heads=2, context=8)).model()
    found = split_names(model, parts)
    assert found[0][0] == "embedding"
    assert found[-1][-1] == "output"
    assert sum(found, []) == [name for name, _ in model.named_children()]
    assert {sum(name.startswith("block") for name in names) for names in found} <= {
        blocks // parts,
        -(-blocks // parts),
    }


def test_without_mnist_the_embedded_digits_are_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, folder: object) -> Any:
        raise DataError(f"{name} is not here")

    learned = []
    for load in (bench.load, missing):
        monkeypatch.setattr(bench, "load", load if load is missing else lambda name, folder: None)
        (setting,) = PipelineBench().settings(replace(SMOKE, schedule="quick", learn=True))
        learned.append(setting.lines[0].config["learn"])
    assert learned == ["98 % on mnist in 6000 steps", "95 % on mnist-10k in 3000 steps"]
    assert goal_of("smoke", "mnist-10k").most_steps <= 100

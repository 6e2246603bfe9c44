"""``bench networks``: what counts as exact, what is refused, and that a comparison sees a gradient that is wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synthgrad.core import ConfigError, StageError
from synthgrad.lab.bench.base import choose, sweep
from synthgrad.lab.bench.declarations import NETWORK_METHODS, NETWORKS, NETWORKS_BENCH, NetworksScope
from synthgrad.lab.bench.networks import bench, crew, measure, trainers
from synthgrad.lab.bench.networks.bench import NetworksBench
from synthgrad.lab.bench.networks.crew import Crew, worst
from synthgrad.lab.bench.networks.entry import CLASSES, Entry
from synthgrad.lab.bench.networks.exactness import EXACT, FAULT, FaultyGradient, compare
from synthgrad.lab.bench.networks.measure import Answer, Case
from synthgrad.lab.bench.networks.trainers import StepCount, backprop
from synthgrad.lab.bench.networks.zoo import ZOO
from synthgrad.lab.bench.workers import WorkersError
from synthgrad.lab.records import Record
from synthgrad.rules import TrueGradient

OWN = [entry for entry in ZOO.values() if entry.library == "torch"]


def case(method: str = "in_process", network: str = "MLP", **changes: Any) -> Case:
    settings = {"dropout": 0.0, "steps": 5, "batch_size": 8} | changes
    return Case(network, method, **settings)


def measured(method: str, network: str = "MLP", **changes: Any) -> Answer:
    return measure.measure(ZOO[network], case(method, network, **changes))


# What is compared


def tensors(**values: Any) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in values.items()}


def test_a_deviation_is_relative_to_the_largest_entry_of_its_tensor() -> None:
    found = compare(tensors(a=[1.0, 4.5], b=[100.0]), tensors(a=[1.5, 4.0], b=[99.0]))
    assert (found.tensor, found.value) == ("a", 0.125)


def test_where_nothing_is_expected_a_deviation_is_absolute() -> None:
    assert compare(tensors(a=[0.0, 0.25]), tensors(a=[0.0, 0.0])).value == 0.25


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (tensors(a=[1.0]), tensors(a=[1.0], b=[1.0])),
        (tensors(a=[1.0], b=[1.0]), tensors(a=[1.0])),
        (tensors(a=[1.0, 1.0]), tensors(a=[1.0])),
        (tensors(a=[math.nan]), tensors(a=[1.0])),
        (tensors(a=[1.0]), tensors(a=[math.nan])),
        (tensors(a=5), tensors(a=4)),
    ],
    ids=["missing", "too many", "another shape", "not finite", "nothing finite expected", "a count"],
)
def test_what_cannot_be_compared_deviates_without_bound(
    found: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    assert compare(found, expected).value == math.inf


def test_equal_tensors_do_not_deviate() -> None:
    same = tensors(a=[1.0, -2.0], steps=3, empty=torch.zeros(0))
    assert compare(same, same).value == 0


# The zoo


@pytest.mark.parametrize("entry", OWN, ids=lambda e: e.name)
def test_backpropagation_trains_every_part_of_a_network(entry: Entry) -> None:
    model = entry.model()
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    trained = backprop(entry, entry.batches((8, 8, 5, 8, 3)))
    still = [n for n, p in model.named_parameters() if torch.equal(trained[n], p)]
    # A bias right below a normalisation that takes the mean away has no gradient.
    assert still == (["transition1.0.bias"] if entry.name == "DenseNet" else [])


def test_a_network_and_its_batches_are_the_same_every_time() -> None:
    entry = ZOO["MLP"]
    first, again, other = entry.model(3), entry.model(3), entry.model(4)
    assert torch.equal(first[0][0].weight, again[0][0].weight)
    assert not torch.equal(first[0][0].weight, other[0][0].weight)
    (x, y), (x_again, y_again) = entry.batches((4,), 3) + entry.batches((4,), 3)
    assert torch.equal(x, x_again)
    assert torch.equal(y, y_again)


def test_targets_of_tokens_are_the_next_tokens() -> None:
    (inputs, y), *_ = ZOO["Llama"].batches((4,))
    assert torch.equal(y[:, :-1], inputs["input_ids"][:, 1:])


def test_batches_have_several_sizes() -> None:
    assert trainers.sizes(7, 16) == (16, 16, 10, 16, 6, 16, 16)
    assert case("layer_parallel").sizes == (8,) * 5


# What is exact


@pytest.mark.parametrize("method", ["plain", "in_process", "layer_parallel"])
def test_an_mlp_is_exact(method: str) -> None:
    answer = measured(method)
    assert (answer.error, answer.failed, answer.metrics["exact"]) == (None, False, 1)
    assert answer.metrics["max_relative_deviation"] < 1e-12
    assert (answer.metrics["modules"], answer.metrics["cuts"]) == (4, "0, 1, 2")
    if method != "layer_parallel":
        assert FAULT / 10 < answer.metrics["control_deviation"] < 10 * FAULT


def test_an_mlp_is_exact_with_dropout_and_the_same_seed() -> None:
    answer = measured("in_process", dropout=0.5)
    assert (answer.error, answer.metrics["exact"]) == (None, 1)
    entry = ZOO["MLP"]
    batches = entry.batches((8, 8))
    assert compare(backprop(entry, batches, 0.5), backprop(entry, batches)).value > 1e-3, "it drops something"


def test_a_library_s_model_is_exact_in_process() -> None:
    pytest.importorskip("transformers", reason="needs transformers, which the model comes from")
    answer = measured("in_process", "BERT", dropout=0.1)
    assert (answer.error, answer.metrics.get("exact")) == (None, 1)


def test_a_wrong_gradient_is_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainers, "TrueGradient", FaultyGradient)
    answer = measured("in_process")
    assert answer.failed
    assert (answer.metrics["exact"], answer.metrics["refused"]) == (0, 0)
    deviation = answer.metrics["max_relative_deviation"]
    assert EXACT < FAULT / 10 < deviation < 10 * FAULT
    assert answer.error == f"'{answer.metrics['tensor']}' deviates by {deviation:.1e}"


def test_a_comparison_that_sees_nothing_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainers, "FaultyGradient", TrueGradient)
    answer = measured("plain")
    assert (answer.failed, answer.metrics["exact"]) == (True, 0)
    assert str(answer.error).startswith("the comparison is blind: gradients wrong by 1e-06 at every cut")


# What is refused


class _Skip(nn.Module):
    """A skip connection crosses the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(h + torch.tanh(x @ self.first.weight))


def entry_of(make: Callable[[float], nn.Module], cuts: tuple[str, ...] | None) -> Entry:
    return Entry("made here", "torch", make, ZOO["MLP"].inputs, cuts)


def test_a_refusal_is_kept_with_its_reason() -> None:
    answer = measure.measure(entry_of(lambda dropout: _Skip(), ("nothing",)), case())
    assert not answer.failed
    assert answer.metrics == {"exact": 0, "refused": 1, "steps": 0, "refused_at": "construction"}
    assert str(answer.error).startswith("CutError: cannot cut after 'nothing': the model has no submodule")


def test_a_refusal_in_the_middle_says_in_which_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(net: Any, entry: Entry, batches: Sequence[Any], count: StepCount, rank: int) -> None:
        for k, _ in enumerate(count.over(batches)):
            if k == 2:
                raise ConfigError("batches of one size only\nand more")

    monkeypatch.setitem(trainers._TRAIN, "in_process", refuse)
    answer = measured("in_process")
    assert (answer.metrics["refused_at"], answer.metrics["steps"]) == ("step 3", 2)
    assert answer.error == "ConfigError: batches of one size only"


@pytest.mark.parametrize(
    ("error", "told"), [(TypeError("of its own"), False), (StageError("stage 1 stopped"), True)]
)
def test_any_other_error_is_a_fault(error: Exception, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setitem(trainers._TRAIN, "in_process", fail)
    answer = measured("in_process")
    assert (answer.failed, answer.told, answer.metrics["refused"]) == (True, told, 0)


def test_cuts_are_proposed_where_none_are_named() -> None:
    model = ZOO["MLP"].model()
    example = ZOO["MLP"].batches((4,))[0][0]
    entry = entry_of(lambda dropout: model, None)
    assert trainers.cuts_of(entry, model, example) == ["0", "1", "2"]
    assert trainers.cuts_of(entry, model, example, middle=True) == ["1"]
    named = entry_of(lambda dropout: model, ("a", "b", "c", "d"))
    assert trainers.cuts_of(named, model, example, middle=True) == ["b"]


# Lines


def lines(scope: NetworksScope) -> dict[tuple[str, str, float], Record]:
    found = [line for setting in NetworksBench().settings(scope) for line in setting.lines]
    return {(r.cell["network"], r.method, r.cell["dropout"]): r for r in found}


def test_lines_of_the_tiers() -> None:
    quick = lines(choose(NETWORKS_BENCH, "quick"))
    assert {network for network, _, _ in quick} == set(ZOO)
    assert {method for _, method, _ in quick} == set(NETWORK_METHODS)
    assert ("ViT", "in_process", 0.1) in quick
    assert ("ViT", "stages", 0.1) not in quick, "two processes draw other random numbers"
    assert ("ResNet-18", "in_process", 0.1) not in quick, "there is none in it"
    for line in quick.values():
        assert line.experiment == "bench/networks"
        assert {"network", "library", "dtype", "dropout", "batch_sizes"} <= set(line.cell)
    smoke = lines(choose(NETWORKS_BENCH, "smoke", rounds=2))
    assert {network for network, _, _ in smoke} == {"MLP", "TransformerEncoder, padding mask"}
    assert {line.steps for line in smoke.values()} == {2}


def test_one_network_alone() -> None:
    alone = lines(choose(NETWORKS_BENCH, "quick", arch="BERT", methods=("stages",)))
    assert list(alone) == [("BERT", "stages", 0.0)]


def test_the_names_are_those_of_the_zoo_and_of_its_trainers() -> None:
    assert tuple(ZOO) == NETWORKS
    assert (*trainers._TRAIN, "layer_parallel") == NETWORK_METHODS


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"methods": ("backprop",)}, "accepted: plain, in_process, stages, layer_parallel"),
        ({"arch": "VGG"}, "--arch 'VGG' is unknown to bench networks; accepted: MLP, residual CNN"),
    ],
)
def test_what_cannot_be_measured(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        NetworksBench().settings(choose(NETWORKS_BENCH, **given))


class _Crew:
    """Stands in for the processes."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.asked, self.stopped = list(answers), [], 0

    def ask(self, case: Case) -> Answer:
        self.asked.append(case)
        return self.answers.pop(0)

    def stop(self) -> None:
        self.stopped += 1


def record_of(
    monkeypatch: pytest.MonkeyPatch, arch: str, answer: Answer, method: str = "plain"
) -> tuple[Any, _Crew]:
    crew = _Crew(answer)
    monkeypatch.setattr(bench, "Crew", lambda *args: crew)
    scope = choose(NETWORKS_BENCH, "quick", arch=arch, methods=(method,))
    (setting,) = NetworksBench().settings(scope)
    return next(iter(setting.measure())), crew


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Answer({"exact": 1, "refused": 0}), "ok"),
        (Answer({"exact": 0, "refused": 1}, "CutError: no"), "ok"),
        (Answer({"exact": 0, "refused": 0}, "'a' deviates by 1.0e-03", failed=True), "failed"),
        (Answer({}, "a process died", failed=True), "failed"),
    ],
    ids=["exact", "refused", "deviates", "died"],
)
def test_what_a_line_says(answer: Answer, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record, crew = record_of(monkeypatch, "MLP", answer)
    assert (record.status, record.error, record.metrics) == (status, answer.error, answer.metrics)
    assert [asked.network for asked in crew.asked] == ["MLP"]


def test_a_network_whose_library_is_not_there_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    bench._why_missing.cache_clear()

    def refuse(name: str) -> None:
        raise RuntimeError(f"operator of {name} does not exist\nand more")

    monkeypatch.setattr(bench.importlib, "import_module", refuse)
    record, crew = record_of(monkeypatch, "ViT (timm)", Answer())
    bench._why_missing.cache_clear()
    assert (record.status, crew.asked) == ("ok", [])
    assert record.metrics == {"exact": 0, "refused": 0, "skipped": 1}
    assert record.error == "skipped: timm cannot be imported (operator of timm does not exist)"


def test_processes_end_with_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[_Crew] = []

    def start(world: int, *rest: Any) -> _Crew:
        made.append(_Crew(*[Answer({"exact": 1})] * 20))
        return made[-1]

    monkeypatch.setattr(bench, "Crew", start)
    scope = choose(NETWORKS_BENCH, "smoke", methods=("plain", "stages"))
    for _ in sweep(NetworksBench(), scope, tmp_path):
        assert [crew.stopped for crew in made] == [0] * len(made)
    assert [crew.stopped for crew in made] == [1, 1], "those of one, and those of two; once for all networks"


# Processes


@pytest.mark.slow(reason="starts two processes, which load PyTorch")
def test_two_processes_train_and_one_that_fails_costs_its_line_alone() -> None:
    two = Crew(2, 1, 60.0)
    try:
        exact = two.ask(case("stages"))
        assert (exact.error, exact.metrics.get("exact"), exact.metrics.get("cuts")) == (None, 1, "1")
        assert exact.metrics["control_deviation"] > EXACT
        failed = two.ask(case("stages", "no such network"))
        # Both fail; which of them answers first is chance.
        assert failed.failed
        assert re.fullmatch(r"process [01]: KeyError: 'no such network'", failed.error or "")
        again = two.ask(case("stages"))
        assert again.metrics["exact"] == 1
    finally:
        two.stop()


class _Workers:
    """Stands in for processes that give these answers, or do not answer."""

    def __init__(self, *answers: Answer | WorkersError) -> None:
        self.answers, self.killed, self.stopped = list(answers), 0, 0

    def ask(self, command: dict[str, Any], timeout_s: float) -> list[dict[str, Any]]:
        for answer in self.answers:
            if isinstance(answer, WorkersError):
                raise answer
        return [{"answer": asdict(answer)} for answer in self.answers if isinstance(answer, Answer)]

    def kill(self) -> None:
        self.killed += 1

    def stop(self) -> None:
        self.stopped += 1


FINE = Answer({"exact": 1, "max_relative_deviation": 0.0})


@pytest.mark.parametrize(
    ("answers", "error", "killed"),
    [
        ([FINE, FINE], None, 0),
        ([WorkersError("no answer of process 0 within 0.05 s")], "no answer of process 0 within 0.05 s", 1),
        ([FINE, Answer({"refused": 1, "refused_at": "construction"}, "CutError: no")], "CutError: no", 0),
        ([FINE, Answer({"refused": 1, "refused_at": "step 2"}, "ConfigError: no")], "ConfigError: no", 1),
    ],
    ids=["fine", "no answer", "refused at once", "refused in the middle"],
)
def test_processes_that_may_wait_for_each_other_are_ended(
    answers: list[Any], error: str | None, killed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = _Workers(*answers)
    monkeypatch.setattr(crew, "Workers", lambda *args: workers)
    ours = Crew(2, 1, 0.05)
    assert ours.ask(case()).error == error
    assert workers.killed == killed
    ours.stop()
    assert workers.stopped == 1 - killed


def test_of_several_answers_the_cause_counts() -> None:
    told = Answer(error="StageError: stage 0 stopped", failed=True, told=True)
    cause = Answer(error="ConfigError: no", metrics={"refused": 1})
    fine, worse = (Answer({"max_relative_deviation": v}) for v in (0.0, 1e-15))
    assert worst([told, cause]) is cause
    assert worst([cause, told]) is cause
    assert worst([fine, told]) is told
    assert worst([fine, worse]) is worse

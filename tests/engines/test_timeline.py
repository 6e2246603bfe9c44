"""Golden timelines: the evidence that a lock is gone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import synthgrad as sg
from synthgrad.core import Timeline
from synthgrad.engines import InProcess, Lag
from tests.networks import CASES, CLASSES


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def engine(case: str = "linear", rule: sg.Rule | None = None, **options: Any) -> tuple[InProcess, Timeline]:
    made = CASES[case]
    timeline = Timeline()
    net = sg.decouple(made.model(), made.at, rule or sg.SyntheticGradient(context=CLASSES), made.batch()[0])
    return InProcess(net, made.criterion, sgd, timeline=timeline, **options), timeline


def test_one_step_of_a_chain() -> None:
    trainer, timeline = engine()
    trainer.step(*CASES["linear"].batch())
    assert timeline.order() == [
        "forward 1",
        "credit 1",
        "backward 1",
        "update 1",
        "forward 3",
        "credit 3",
        "backward 3",
        "message 1",
        "observe 1",
        "update 3",
        "forward output",
        "backward output",
        "message 3",
        "observe 3",
        "update output",
    ]


def test_a_module_has_updated_before_the_next_one_starts() -> None:
    """The update lock is gone: seen from inside the user's own modules, not from the engine's records."""
    trainer, _ = engine()
    model = trainer.net.model
    assert isinstance(model, nn.Sequential)
    before = {k: model[k].weight.clone() for k in (0, 2)}  # type: ignore[union-attr]
    changed: dict[int, bool] = {}

    def starts(below: int) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            changed[below] = not torch.equal(model[below].weight, before[below])  # type: ignore[arg-type]

        return hook

    for x, y in CASES["linear"].batches(3):  # the first synthetic gradients are zero
        before.update({k: model[k].weight.clone() for k in (0, 2)})  # type: ignore[union-attr]
        handles = [model[k + 2].register_forward_pre_hook(starts(k)) for k in (0, 2)]
        trainer.step(x, y)
        for handle in handles:
            handle.remove()
    assert changed == {0: True, 2: True}


def test_a_module_updates_though_nothing_above_it_ever_runs() -> None:
    """Neither forward nor backward of what is above is waited for: here it raises, and the update stays."""
    trainer, timeline = engine()
    for x, y in CASES["linear"].batches(3):
        trainer.step(x, y)
    model = trainer.net.model
    before = model[0].weight.clone()  # type: ignore[index,union-attr,operator]
    timeline.events.clear()

    def refuse(module: nn.Module, args: Any) -> None:
        raise RuntimeError("the module above does not run")

    model[2].register_forward_pre_hook(refuse)  # type: ignore[index,union-attr,operator]
    with pytest.raises(RuntimeError, match="does not run"):
        trainer.step(*CASES["linear"].batch())
    assert timeline.order("update") == ["update 1"]
    assert not torch.equal(model[0].weight, before)  # type: ignore[index,arg-type]
    assert torch.is_grad_enabled()


def test_two_heads_the_trunks_message_waits_for_both() -> None:
    trainer, timeline = engine("two_headed")
    trainer.step(*CASES["two_headed"].batch())
    assert timeline.order("update", "message") == [
        "update trunk",
        "update inner",
        "message trunk",
        "message inner",
        "update output",
    ]


def test_no_backprop_updates_only_the_last_module() -> None:
    trainer, timeline = engine(rule=sg.NoBackprop())
    record = trainer.step(*CASES["linear"].batch())
    assert record.updated == ["output"]
    assert timeline.order("backward", "message", "observe") == ["backward output"]


def test_graphs_are_freed_one_by_one() -> None:
    """What is held for backward does not grow with depth."""

    def peak(layers: int) -> int:
        parts: list[nn.Module] = []
        for _ in range(layers):
            parts.append(nn.Sequential(nn.Linear(16, 16), nn.Tanh()))
        model = nn.Sequential(*parts, nn.Linear(16, CLASSES)).double()
        x, y = torch.randn(32, 16, dtype=torch.float64), torch.randint(0, CLASSES, (32,))
        net = sg.decouple(model, [str(k) for k in range(layers)], sg.SyntheticGradient(), x)
        trainer = InProcess(net, nn.CrossEntropyLoss(), sgd)
        live = most = 0

        class Kept:
            def __init__(self, tensor: torch.Tensor) -> None:
                nonlocal live, most
                self.tensor = tensor
                live += tensor.numel()
                most = max(most, live)

            def __del__(self) -> None:
                nonlocal live
                live -= self.tensor.numel()

        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            trainer.step(x, y)
        return most

    assert peak(12) == peak(3) > 0


def test_forward_lag_fills_before_the_module_above_runs() -> None:
    trainer, timeline = engine(lags={"1": Lag(forward=2)})
    batches = CASES["linear"].batches(4)
    losses = [trainer.step(x, y).loss for x, y in batches]
    assert [loss is None for loss in losses] == [True, True, False, False]
    runs = [(e.step, e.batch) for e in timeline.events if e.kind == "forward" and e.where == "output"]
    assert runs == [(2, 0), (3, 1)]
    observed = [(e.step, e.batch) for e in timeline.events if e.kind == "observe" and e.where == "1"]
    assert observed == [(2, 0), (3, 1)]


def test_observe_lag_delays_learning_alone() -> None:
    trainer, timeline = engine(lags={"3": Lag(observe=2)})
    for x, y in CASES["linear"].batches(4):
        trainer.step(x, y)
    events = [
        (e.kind, e.step, e.batch)
        for e in timeline.events
        if e.where == "3" and e.kind in ("message", "observe")
    ]
    assert [e for e in events if e[0] == "message"] == [("message", k, k) for k in range(4)]
    assert [e for e in events if e[0] == "observe"] == [("observe", 2, 0), ("observe", 3, 1)]


def test_sparse_updates_only_pass_activations_on() -> None:
    trainer, timeline = engine(update_prob=0.3, generator=torch.Generator().manual_seed(0))
    num_steps = 200
    updated = 0
    for x, y in CASES["linear"].batches(num_steps):
        updated += len(trainer.step(x, y).updated)
    assert 0.2 < updated / (3 * num_steps) < 0.4
    skipped = sum(e.kind == "skip" for e in timeline.events)
    assert skipped + sum(e.kind == "update" for e in timeline.events) == 3 * num_steps
    # a module's rule learns when, and only when, the module that it speaks for updates
    steps = {(e.where, e.step) for e in timeline.events if e.kind == "update"}
    assert {e.step for e in timeline.events if e.kind == "observe" and e.where == "3"} == {
        t for where, t in steps if where == "output"
    }

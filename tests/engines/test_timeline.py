"""The evidence that a lock is gone: seen from inside the user's modules, and where a schedule is drawn at random.

What follows from graph, lags and waiting rules is compared with timetables, in ``test_timetable.py``.
"""

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


def test_a_loss_comes_when_the_forward_lag_has_filled() -> None:
    trainer, _ = engine(lags={"1": Lag(forward=2)})
    losses = [trainer.step(x, y).loss for x, y in CASES["linear"].batches(4)]
    assert [loss is None for loss in losses] == [True, True, False, False]


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

"""Error feedback against its formula, with every optimizer that it is made for."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import synthgrad as sg
from synthgrad.core import ConfigError
from synthgrad.optim import ErrorFeedback

Make = Callable[[Any], Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1),
    "fused": lambda p: torch.optim.Adam(p, 0.1, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.3),
    "nadam": lambda p: torch.optim.NAdam(
        p, 0.1, betas=(0.99, 0.999), weight_decay=0.3, decoupled_weight_decay=True
    ),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.1, weight_decay=0.3),
    "muon": lambda p: torch.optim.Muon(p, 0.1, weight_decay=0.3),
}
each = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def weights(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(4, 3, generator=generator, dtype=torch.float64)) for _ in range(2)]


def gradients(steps: int = 5) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        [torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2)] for _ in range(steps)
    ]


def give(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for p, g in zip(parameters, values, strict=True):
        p.grad = g.clone()


def decay_of(optimizer: Optimizer) -> float:
    """Return the factor of a step's decoupled weight decay."""
    group = optimizer.param_groups[0]
    decoupled = group.get("decoupled_weight_decay") or isinstance(
        optimizer, torch.optim.Muon | torch.optim.Adafactor
    )
    return 1 - group["lr"] * group["weight_decay"] if decoupled else 1.0


@each
def test_it_is_the_formula(make: Make) -> None:
    """``x − (2 u − u_before)``, where ``u`` is what the optimizer alone makes of the gradient at the same weights."""
    x = weights()
    optimizer = ErrorFeedback(make(x))
    alone = weights()
    peer = make(alone)  # its weights are set to ours before each step, so its state sees what ours sees
    shrink = decay_of(peer)
    last = [torch.zeros_like(p) for p in x]
    for values in gradients():
        with torch.no_grad():
            for p, q in zip(alone, x, strict=True):
                p.copy_(q)
        give(alone, values)
        give(x, values)
        before = [p.detach().clone() for p in x]
        peer.step()
        optimizer.step()
        for k, (p, q) in enumerate(zip(x, alone, strict=True)):
            update = before[k] * shrink - q.detach()
            torch.testing.assert_close(p.detach(), before[k] * shrink - (2 * update - last[k]))
            last[k] = update


def test_with_a_constant_gradient_it_is_one_update_ahead() -> None:
    """A late gradient that never changes is no worse than a fresh one: the lost update is made up for at once."""
    x, y = weights(), weights()
    late, fresh = ErrorFeedback(torch.optim.SGD(x, 0.1)), torch.optim.SGD(y, 0.1)
    (values,) = gradients(1)
    for _ in range(3):
        give(x, values)
        late.step()
    for _ in range(4):
        give(y, values)
        fresh.step()
    torch.testing.assert_close(x, y)


def test_with_a_delay_of_one_it_is_where_fresh_gradients_lead() -> None:
    """Gradient descent on ``x²/2``: the first update, which counts twice, puts it one update ahead."""

    def path(num: int, *, wrap: bool, delay: int) -> list[float]:
        x = nn.Parameter(torch.ones(1, dtype=torch.float64))
        plain = torch.optim.SGD([x], lr=0.1)
        optimizer = ErrorFeedback(plain) if wrap else plain
        seen = [x.item()]
        for t in range(num):
            x.grad = torch.full_like(x, seen[max(0, t - delay)])
            optimizer.step()
            seen.append(x.item())
        return seen

    fresh = path(21, wrap=False, delay=0)[-1]
    late, repaired = path(20, wrap=False, delay=1)[-1], path(20, wrap=True, delay=1)[-1]
    assert abs(repaired - fresh) < 0.1 * abs(late - fresh)


@each
def test_groups_that_are_not_late_are_stepped_as_usual(make: Make) -> None:
    x, y = weights(), weights()
    optimizer = ErrorFeedback(make([{"params": x[:1], "late": False}, {"params": x[1:]}]))
    plain = make(y)
    for values in gradients():
        give(x, values)
        give(y, values)
        optimizer.step()
        plain.step()
    torch.testing.assert_close(x[0], y[0], rtol=0, atol=0)
    assert not torch.allclose(x[1], y[1])


@each
def test_a_saved_state_goes_on_bit_by_bit(make: Make) -> None:
    def run(x: list[nn.Parameter], optimizer: ErrorFeedback, values: list[list[Tensor]]) -> None:
        for each_step in values:
            give(x, each_step)
            optimizer.step()

    # NAdam's own state does not come back bit by bit for weights in float64.
    values = [[g.float() for g in step] for step in gradients(6)]
    whole = [nn.Parameter(p.detach().float()) for p in weights()]
    run(whole, ErrorFeedback(make(whole)), values)
    first = [nn.Parameter(p.detach().float()) for p in weights()]
    optimizer = ErrorFeedback(make(first))
    run(first, optimizer, values[:3])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = copy.deepcopy(first)
    resumed = ErrorFeedback(make(second))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    run(second, resumed, values[3:])
    for p, q in zip(whole, second, strict=True):
        assert torch.equal(p, q)


def test_schedulers_and_hooks_work_as_usual() -> None:
    x = weights()
    optimizer = ErrorFeedback(torch.optim.AdamW(x, 0.1))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    called: list[int] = []
    optimizer.register_step_post_hook(lambda *_: called.append(1))
    for values in gradients(3):
        give(x, values)
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == optimizer.optimizer.param_groups[0]["lr"] == 0.1 / 8
    assert called == [1, 1, 1]
    assert optimizer.param_groups[0]["weight_decay"] == 0.01
    optimizer.zero_grad()
    assert x[0].grad is None
    extra = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [extra]})
    assert optimizer.optimizer.param_groups[1]["params"] == [extra]


def test_parameters_without_a_gradient_are_left_alone() -> None:
    x = weights()
    optimizer = ErrorFeedback(torch.optim.AdamW(x, 0.1))
    give(x, gradients(1)[0])
    optimizer.step()
    x[1].grad = None
    before = x[1].detach().clone()
    optimizer.step()
    assert torch.equal(x[1], before)


def test_what_cannot_be_wrapped() -> None:
    x = weights()
    with pytest.raises(ConfigError, match="has error feedback already"):
        ErrorFeedback(ErrorFeedback(torch.optim.SGD(x, 0.1)))
    with pytest.raises(ConfigError, match="got type, expected an optimizer of torch"):
        ErrorFeedback(torch.optim.SGD)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="got LBFGS"):
        ErrorFeedback(torch.optim.LBFGS(x))
    with pytest.raises(ConfigError, match="got a closure"):
        ErrorFeedback(torch.optim.SGD(x, 0.1)).step(lambda: 1.0)


def test_a_copy_goes_on_like_the_original() -> None:
    x = weights()
    optimizer = ErrorFeedback(torch.optim.AdamW(x, 0.1))
    first, second = gradients(2)
    give(x, first)
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    own = twin.param_groups[0]["params"]
    for parameters, each_optimizer in ((x, optimizer), (own, twin)):
        give(parameters, second)
        each_optimizer.step()
    for p, q in zip(x, own, strict=True):
        assert p is not q
        assert torch.equal(p, q)


@pytest.mark.parametrize("engine", ["Locked", "LayerParallel"])
def test_engines_that_do_not_know_which_gradients_are_late_refuse_it(engine: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    net = sg.decouple(model, ["0", "1"], sg.SyntheticGradient(context=2), torch.ones(5, 3))
    with pytest.raises(
        ConfigError,
        match="this engine does not say which of its gradients do.*give the engine the AdamW itself",
    ):
        getattr(sg.engines, engine)(net, nn.CrossEntropyLoss(), lambda p: ErrorFeedback(torch.optim.AdamW(p)))

"""Sparse updates of the locked network: skipped steps leave the weights, and the draws are resumed."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, ContextError, Guard, Timeline
from synthgrad.engines import Locked

STEPS = 40


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-2)


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 1e-1)


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def _batches(num: int = STEPS) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, 5, generator=generator), torch.randint(3, (6,), generator=generator))
        for _ in range(num)
    ]


def _locked(net: nn.Module, prob: float, seed: int = 2) -> Locked:
    generator = torch.Generator().manual_seed(seed)
    return Locked(net, nn.CrossEntropyLoss(), _adam, update_prob=prob, generator=generator)


def test_a_step_without_update_runs_forward_only() -> None:
    net = _network()
    trainer = _locked(net, 0.3)
    for x, y in _batches():
        weights = [p.detach().clone() for p in net.parameters()]
        seen = int(net[1].num_batches_tracked)  # type: ignore[index]
        done = trainer.step(x, y)
        changed = any(not torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
        assert changed == (done.updated == ["all"])
        assert done.updated in ([], ["all"])
        assert done.loss is not None
        assert int(net[1].num_batches_tracked) == seen + 1  # type: ignore[index]


def test_updates_come_as_often_as_the_probability_says() -> None:
    trainer = _locked(_network(), 0.3)
    done = [bool(trainer.step(x, y).updated) for x, y in _batches(400)]
    assert 80 < sum(done) < 160  # 120 expected; far outside what chance does


def test_the_updates_are_those_of_training_on_these_batches_alone() -> None:
    sparse, dense = _network(), _network()
    for module in (sparse[1], dense[1]):  # type: ignore[index]
        module.momentum = 0.0  # running statistics see skipped batches too; the weights do not
    trainer, every = _locked(sparse, 0.5), Locked(dense, nn.CrossEntropyLoss(), _adam)
    for x, y in _batches():
        if trainer.step(x, y).updated:
            every.step(x, y)
    for (name, a), b in zip(sparse.named_parameters(), dense.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_draws_go_on_where_they_were() -> None:
    net = _network()
    trainer = _locked(net, 0.5)
    batches = _batches()
    for x, y in batches[:20]:
        trainer.step(x, y)
    again = copy.deepcopy(net)
    resumed = _locked(again, 0.5, seed=99)
    resumed.load_state_dict(copy.deepcopy(trainer.state_dict()))
    for x, y in batches[20:]:
        assert resumed.step(x, y).updated == trainer.step(x, y).updated
    for a, b in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_without_draws_is_taken_up() -> None:
    trainer = _locked(_network(), 1.0)
    state = trainer.state_dict()
    del state["generator"]
    trainer.load_state_dict(state)
    assert trainer.step(*_batches(1)[0]).updated == ["all"]


@pytest.mark.parametrize("prob", [0.0, -0.1, 1.1, float("nan")])
def test_no_probability(prob: float) -> None:
    with pytest.raises(ConfigError, match="expected a probability over 0"):
        _locked(_network(), prob)


# -- updates of several microbatches ------------------------------------------------------------------


def _decoupled() -> nn.Module:
    rule = sg.SyntheticGradient((4,), context=3)
    return sg.decouple(_network(), ["1"], rule, _batches(1)[0][0])


@pytest.mark.parametrize("make", [_network, _decoupled])
def test_an_update_is_the_mean_of_its_microbatches(make: Any) -> None:
    ours, theirs = make(), make()
    timeline = Timeline()
    trainer = Locked(ours, nn.CrossEntropyLoss(), _adam, accumulate=3, timeline=timeline)
    optimizer = _adam(theirs.parameters())
    for k, (x, y) in enumerate(_batches(9), 1):
        weights = {name: p.detach().clone() for name, p in ours.named_parameters()}
        done = trainer.step(x, y)
        assert done.updated == ([] if k % 3 else ["all"])
        # Nobody outside finds a part of an update, and changes it.
        assert all((p.grad is None) == bool(k % 3) for p in ours.parameters())
        moved = any(not torch.equal(p, weights[name]) for name, p in ours.named_parameters())
        assert moved == (not k % 3)
        scores = theirs(x, context=y) if make is _decoupled else theirs(x)
        F.cross_entropy(scores, y).backward()
        if k % 3 == 0:
            for p in theirs.parameters():
                assert p.grad is not None
                p.grad /= 3
            optimizer.step()
            optimizer.zero_grad()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert [event.step for event in timeline.events if event.kind == "update"] == [2, 5, 8]


def _in_float64(accumulate: int, batches: list[tuple[Tensor, Tensor]]) -> nn.Module:
    net = _network().double().eval()  # without the statistics of a batch
    trainer = Locked(net, nn.CrossEntropyLoss(), _adam, accumulate=accumulate)
    for x, y in batches:
        trainer.step(x.double(), y)
    return net


def test_microbatches_are_as_one_batch() -> None:
    batches = _batches(8)
    pairs = [
        (torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]]))
        for a, b in zip(batches[::2], batches[1::2], strict=True)
    ]
    ours, theirs = _in_float64(2, batches), _in_float64(1, pairs)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("saved_after", [4, 5, 6])
def test_an_incomplete_update_is_resumed(saved_after: int) -> None:
    net = _network()
    trainer = Locked(net, nn.CrossEntropyLoss(), _adam, accumulate=3)
    batches = _batches(9)
    for x, y in batches[:saved_after]:
        trainer.step(x, y)
    kept = io.BytesIO()
    torch.save([net.state_dict(), trainer.state_dict()], kept)
    kept.seek(0)
    for x, y in batches[saved_after:]:
        trainer.step(x, y)
    states = torch.load(kept, weights_only=True)
    again = _network()
    again.load_state_dict(states[0])
    resumed = Locked(again, nn.CrossEntropyLoss(), _adam, accumulate=3)
    resumed.load_state_dict(states[1])
    for x, y in batches[saved_after:]:
        resumed.step(x, y)
    for (name, a), b in zip(net.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name
    other = Locked(_network(), nn.CrossEntropyLoss(), _adam, accumulate=2)
    if saved_after == 6:  # no update is incomplete, of three or of two
        other.load_state_dict(states[1])
    else:
        with pytest.raises(
            ConfigError, match=f"the state is of step {saved_after} with accumulate=3, within"
        ):
            other.load_state_dict(states[1])


def test_what_is_skipped_or_fails_adds_nothing_to_an_update() -> None:
    """A microbatch that is not finite, and one that is refused, between others."""
    batches = _batches(3)
    x, y = batches[1]
    nets = [_network(), _network()]
    guard = Guard(skip=True)
    trainer = Locked(nets[0], nn.CrossEntropyLoss(), _sgd, accumulate=3, guard=guard)
    trainer.step(*batches[0])
    assert trainer.step(x * float("nan"), y).updated == []
    with pytest.raises(ContextError, match="got labels from"):
        trainer.step(x, y + 7)
    assert trainer.step(*batches[2]).updated == ["all"]
    assert guard.skipped["loss"] == 1
    optimizer = _sgd(nets[1].parameters())
    for k in (0, 2):
        (F.cross_entropy(nets[1](batches[k][0]), batches[k][1]) / 3).backward()
    optimizer.step()
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_an_incomplete_update_is_not_made_at_the_end() -> None:
    net = _network()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    trainer = Locked(net, nn.CrossEntropyLoss(), _adam, accumulate=4)
    for x, y in _batches(3):
        trainer.step(x, y)
    trainer.flush()
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name]), name


@pytest.mark.parametrize("accumulate", [0, -1, True, 1.5, "2", None])
def test_no_number_of_microbatches(accumulate: Any) -> None:
    with pytest.raises(
        ConfigError, match="accumulate=.*expected the number of microbatches of an update, at least 1"
    ):
        Locked(_network(), nn.CrossEntropyLoss(), _adam, accumulate=accumulate)


def test_microbatches_and_skipped_updates_are_not_mixed() -> None:
    with pytest.raises(ConfigError, match="accumulate=2 with update_prob=0.5: .* use one of the two"):
        Locked(_network(), nn.CrossEntropyLoss(), _adam, accumulate=2, update_prob=0.5)

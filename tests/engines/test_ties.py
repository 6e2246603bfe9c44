"""Tied weights: updated once from the gradients of both modules, at once or late, in one process and on stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, Decoupled, Rule
from synthgrad.engines import InProcess, Lag, Stages
from synthgrad.engines.stages.transport import Link, run_in_memory
from synthgrad.lab.tasks.gpt import gpt
from synthgrad.optim import ErrorFeedback
from synthgrad.rules import LateCorrection, LocalLoss, SyntheticGradient, TrueGradient, heads

VOCABULARY, CONTEXT, BATCH = 11, 6, 4
CUTS = ("block1", "block2")
BLOCKS = 4


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return gpt(VOCABULARY, width=8, blocks=BLOCKS, heads=2, context=CONTEXT, tied=True).double()


def batches(number: int) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(1)
    drawn = [torch.randint(VOCABULARY, (BATCH, CONTEXT + 1), generator=made) for _ in range(number)]
    return [(d[:, :-1].contiguous(), d[:, 1:].contiguous()) for d in drawn]


def criterion(scores: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), y.flatten())


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, 0.01, weight_decay=0.1)


def decoupled(rule: Callable[[], Rule] = TrueGradient, at: tuple[str, ...] = CUTS) -> Decoupled:
    return sg.decouple(model(), at, rule(), batches(1)[0][0], reduction="tokens")


def local_loss() -> Rule:
    torch.manual_seed(2)
    return LocalLoss(VOCABULARY, heads.token_head(0))


def synthetic() -> Rule:
    torch.manual_seed(2)
    return SyntheticGradient(context=VOCABULARY)


def correction() -> Rule:
    return LateCorrection(local_loss())


def blocks(cuts: int) -> tuple[str, ...]:
    return tuple(f"block{k + 1}" for k in range(cuts))


def embedding(net: Decoupled) -> Tensor:
    return net.model.get_parameter("embedding.weight").detach()


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("at", [CUTS, ("embedding", "block2")])
def test_the_true_gradient_is_that_of_the_plain_loop(size: int, at: tuple[str, ...]) -> None:
    expected = model()
    optimizer = adamw(expected.parameters())
    net = decoupled(at=at)
    trainer = InProcess(net, criterion, adamw, accumulate=size, tied_lag=0)
    for k, (x, y) in enumerate(batches(4 * size), 1):
        (criterion(expected(x), y) / size).backward()
        if k % size == 0:
            optimizer.step()
            optimizer.zero_grad()
        trainer.step(x, y)
    for (name, p), q in zip(net.model.named_parameters(), expected.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-9, atol=1e-11), name
    assert not torch.equal(embedding(net), model().get_parameter("embedding.weight"))


def test_a_lag_applies_the_gradients_of_earlier_updates() -> None:
    """With SGD, and everything else frozen, the sum of what was applied can be told by hand."""
    net = decoupled(at=("block2",))
    for name, p in net.model.named_parameters():
        p.requires_grad_(name == "embedding.weight")
    trainer = InProcess(net, criterion, lambda ps: torch.optim.SGD(ps, 0.5), tied_lag=2)
    seen = [embedding(net).clone()]
    grads: list[Tensor] = []
    for x, y in batches(5):
        plain = model()
        with torch.no_grad():
            plain.get_parameter("embedding.weight").copy_(embedding(net))
        criterion(plain(x), y).backward()
        grad = plain.get_parameter("embedding.weight").grad
        assert grad is not None
        grads.append(grad)
        trainer.step(x, y)
        seen.append(embedding(net).clone())
    assert torch.equal(seen[2], seen[0])
    for k in range(3):
        assert torch.allclose(seen[k + 3] - seen[k + 2], -0.5 * grads[k], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", [TrueGradient, local_loss, synthetic, correction])
@pytest.mark.parametrize("size", [1, 2])
def test_a_run_goes_on_bit_by_bit(rule: Callable[[], Rule], size: int) -> None:
    def made() -> tuple[Decoupled, InProcess]:
        net = decoupled(rule)
        lags = {name: Lag(observe=2) for name in CUTS}
        return net, InProcess(net, criterion, adamw, accumulate=size, lags=lags, tied_lag=1)

    data = batches(9)
    net, trainer = made()
    for x, y in data:
        trainer.step(x, y)
    first, half = made()
    for x, y in data[:5]:
        half.step(x, y)
    second, rest = made()
    second.load_state_dict(first.state_dict())
    rest.load_state_dict(half.state_dict())
    for x, y in data[5:]:
        rest.step(x, y)
    for name, value in net.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_error_feedback_is_told_that_gradients_are_late() -> None:
    def factory(parameters: Any) -> torch.optim.Optimizer:
        return ErrorFeedback(adamw(parameters))

    late = InProcess(decoupled(local_loss), criterion, factory, tied_lag=1).optimizers[-1]
    fresh = InProcess(decoupled(local_loss), criterion, factory, tied_lag=0).optimizers[-1]
    assert [group["late"] for group in late.param_groups] == [True]
    assert [group["late"] for group in fresh.param_groups] == [False]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, r"'embedding.weight' is used by two modules.*tied_lag"),
        ({"tied_lag": -1}, "tied_lag=-1"),
        ({"tied_lag": 1.5}, "tied_lag=1.5"),
        ({"tied_lag": 0, "penalty": lambda ps: sum(p.sum() for p in ps)}, "tied_lag and penalty were given"),
    ],
)
def test_what_is_refused_in_one_process(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        InProcess(decoupled(), criterion, adamw, **given)


def test_a_frozen_parameter_may_be_shared() -> None:
    net = decoupled(local_loss)
    net.model.get_parameter("embedding.weight").requires_grad_(False)
    trainer = InProcess(net, criterion, adamw, tied_lag=0)
    before = embedding(net).clone()
    for x, y in batches(2):
        trainer.step(x, y)
    assert torch.equal(embedding(net), before)


def test_a_network_without_tied_weights_has_no_lag_of_them() -> None:
    net = sg.decouple(
        nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), ["0"], TrueGradient(), torch.zeros(2, 3)
    )
    with pytest.raises(ConfigError, match="no two modules of this network share a parameter; leave it out"):
        InProcess(net, F.cross_entropy, adamw, tied_lag=0)


# Stages


def stage(
    transport: Any,
    rule: Callable[[], Rule] = TrueGradient,
    number: int = 6,
    state: Any = None,
    cuts: int = 2,
    optimizer: Any = adamw,
    **given: Any,
) -> tuple[dict[str, Tensor], Any]:
    """Train as one of the stages; return all weights, gathered, and the state of this stage."""
    net = decoupled(rule, blocks(cuts))
    with Stages(net, criterion, optimizer, deterministic=True, transport=transport, **given) as stages:
        done = 0
        if state is not None:
            net.load_state_dict(state[transport.rank][0])
            stages.load_state_dict(state[transport.rank][1])
            done = state[transport.rank][1]["step"]
        for x, y in batches(number)[done:]:
            stages.step(x, y)
        saved = (net.state_dict(), stages.state_dict())
        saved = ({k: v.clone() for k, v in saved[0].items()}, saved[1])
        own = embedding(net).clone() if transport.rank in (0, cuts) else None
        stages.gather()
        weights = {name: value.clone() for name, value in net.model.state_dict().items()}
    return weights, (saved, own)


def in_process(
    rule: Callable[[], Rule], lag: int, number: int = 6, cuts: int = 2, optimizer: Any = adamw, **given: Any
) -> dict[str, Tensor]:
    net = decoupled(rule, blocks(cuts))
    lags = {name: Lag(observe=lag) for name in blocks(cuts)}
    trainer = InProcess(net, criterion, optimizer, lags=lags, **given)
    for x, y in batches(number):
        trainer.step(x, y)
    return net.model.state_dict()


@pytest.mark.parametrize("rule", [TrueGradient, local_loss, synthetic])
@pytest.mark.parametrize(("window", "size", "lag"), [(0, 1, 0), (2, 1, 1), (1, 3, 2), (2, 2, 0)])
def test_stages_give_the_bits_of_one_process(
    rule: Callable[[], Rule], window: int, size: int, lag: int
) -> None:
    given: dict[str, Any] = {"accumulate": size, "tied_lag": lag}
    expected = in_process(rule, window, 4 * size, **given)

    def program(transport: Any) -> Any:
        return stage(transport, rule, 4 * size, window=window, **given)

    found = run_in_memory(3, program, links=Link(delay_s=0.25))
    for weights, _ in found:
        for name, value in expected.items():
            assert torch.equal(weights[name], value), name
    assert torch.equal(found[0][1][1], found[2][1][1]), "the copies differ"


def fed_back(parameters: Any) -> torch.optim.Optimizer:
    return ErrorFeedback(adamw(parameters))


@pytest.mark.parametrize("lag", [0, 1])
def test_copies_stay_equal_where_one_stage_alone_learns_late(lag: int) -> None:
    given: dict[str, Any] = {"optimizer": fed_back, "tied_lag": lag}
    expected = in_process(TrueGradient, 2, 8, **given)
    found = run_in_memory(3, lambda t: stage(t, TrueGradient, 8, window=2, accumulate=1, **given))
    assert torch.equal(found[0][1][1], found[2][1][1])
    assert torch.equal(found[0][0]["embedding.weight"], expected["embedding.weight"])


def test_optimizers_with_other_settings_are_refused_before_copies_differ() -> None:
    def program(transport: Any) -> None:
        net = decoupled(local_loss)
        with Stages(net, criterion, adamw, window=1, tied_lag=1, transport=transport) as stages:
            for k, (x, y) in enumerate(batches(8)):
                if k == 3 and transport.rank == 2:
                    for group in stages.optimizers[-1].param_groups:
                        group["lr"] /= 10
                stages.step(x, y)

    with pytest.raises(ConfigError, match="update 3: the optimizers of tied parameters have other settings"):
        run_in_memory(3, program)


def test_more_parameters_than_a_header_has_bits_for_are_refused() -> None:
    shared = nn.Sequential(*(nn.Linear(2, 2) for _ in range(31)))
    layers = nn.Sequential(shared, nn.Linear(2, 2), nn.Sequential(*shared, nn.Linear(2, 2)))
    net = sg.decouple(layers, ["0", "1"], TrueGradient(), torch.zeros(2, 2))
    with pytest.raises(ConfigError, match="share 62 parameters, expected at most 60"):
        run_in_memory(3, lambda t: Stages(net, F.cross_entropy, adamw, window=1, tied_lag=1, transport=t))


def test_stages_go_on_bit_by_bit_with_tied_weights() -> None:
    given: dict[str, Any] = {"rule": local_loss, "window": 2, "tied_lag": 2}
    whole = run_in_memory(3, lambda t: stage(t, number=7, **given))
    half = run_in_memory(3, lambda t: stage(t, number=4, **given))
    state = [saved for _, (saved, _) in half]
    rest = run_in_memory(3, lambda t: stage(t, number=7, state=state, **given))
    for name, value in whole[0][0].items():
        assert torch.equal(rest[0][0][name], value), name


def test_a_lag_lets_the_first_stage_run_ahead() -> None:
    """A step takes 1/8 s, a parcel 1 s to the next stage: without a lag every update waits for the way there and back."""

    def program(transport: Any, lag: int) -> float:
        net = decoupled(local_loss)
        with Stages(
            net, criterion, adamw, window=30, deterministic=True, tied_lag=lag, transport=transport
        ) as stages:
            stages.module.register_forward_pre_hook(lambda *_: transport.clock.sleep(1 / 8))
            start = transport.clock.now()
            for x, y in batches(24):
                stages.step(x, y)
            return transport.clock.now() - start

    slow, fast = (run_in_memory(3, program, lag, links=Link(delay_s=1.0))[0] for lag in (0, 40))
    assert slow > 24 * 4
    assert fast == 24 / 8


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, r"'embedding.weight' is used by two modules.*tied_lag"),
        ({"tied_lag": -1}, "tied_lag=-1"),
        ({"tied_lag": 1, "clip_norm": 1.0}, "tied_lag=1 together with clip_norm"),
        ({"tied_lag": 1, "penalty": lambda ps: 0.0}, "tied_lag=1 together with penalty"),
    ],
)
def test_what_stages_refuse(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        run_in_memory(3, lambda t: Stages(decoupled(), criterion, adamw, window=1, transport=t, **given))


def test_weights_that_inner_stages_share_are_refused() -> None:
    torch.manual_seed(0)
    first, third = nn.Linear(4, 4), nn.Linear(4, 4)
    third.weight = first.weight
    layers = nn.Sequential(first, nn.Linear(4, 4), third, nn.Linear(4, 2))
    net = sg.decouple(layers, ["0", "1", "2"], TrueGradient(), torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="is used by stages 0, 2: with tied_lag expected the first and the"):
        run_in_memory(4, lambda t: Stages(net, F.cross_entropy, adamw, window=1, tied_lag=1, transport=t))

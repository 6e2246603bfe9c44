"""Stages of any network: exact with the true gradient, and refused everywhere where they cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import synthgrad as sg
from synthgrad.core import Decoupled
from synthgrad.engines import Stages
from tests.engines.stages.places import InMemory, Place
from tests.engines.test_parts import Beside, Masked, Sized
from tests.engines.test_penalty import Gated

Batch = tuple[Any, Tensor]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)


def masked(size: int, generator: torch.Generator, *, length: int = 5) -> Any:
    return {"ids": torch.randint(0, 20, (size, length), generator=generator)}


def sized(size: int, generator: torch.Generator) -> Any:
    return torch.randn(size, 6, generator=generator, dtype=torch.float64)


class TwoInputs(nn.Module):
    """A number and a tensor beside the first input, one with a name; ReLU in place right above the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.top = nn.Bilinear(6, 6, 8), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 3))

    def forward(self, a: Tensor, b: Tensor, *, weight: Tensor, power: int = 1) -> dict[str, Tensor]:
        return {"scores": self.top(self.low(a, b)) * weight**power}


def two_inputs(size: int, generator: torch.Generator) -> Any:
    a, b = sized(size, generator), sized(size, generator)
    return {"a": a, "b": b, "weight": torch.tensor(0.5, dtype=torch.float64), "power": 2}


class TimeFirst(nn.Module):
    """Messages are (T, B, F)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.low = nn.Linear(6, 8), nn.LSTM(8, 8)
        self.norm, self.out = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.mix(x.unflatten(1, (3, 2)).repeat(1, 1, 3).transpose(0, 1)))
        return self.out(self.norm(self.low(h)[0][-1]))


NETWORKS: dict[str, tuple[Any, str, Any]] = {
    "masked": (Masked, "norm", masked),
    "sized": (Sized, "low", sized),
    "two inputs": (TwoInputs, "low", two_inputs),
    "time first": (TimeFirst, "mix", sized),
    "in place": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)),
        "0",
        sized,
    ),
    "shared activation": (
        lambda: (lambda act: nn.Sequential(nn.Linear(6, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 3)))(
            nn.Tanh()
        ),
        "2",
        sized,
    ),
}


def network(name: str, rule: sg.Rule) -> tuple[nn.Module, Decoupled, list[Batch]]:
    """Return model, decoupled network and batches of several sizes; equal in every process."""
    make, cut, inputs = NETWORKS[name]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        model = make().double()
    finally:
        torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(1)
    batches = [
        (inputs(size, generator), torch.randint(0, 3, (size,), generator=generator)) for size in (6, 6, 3, 6)
    ]
    return model, sg.decouple(model, [cut], rule, batches[0][0]), batches


def criterion(output: Any, y: Tensor) -> Tensor:
    return F.cross_entropy(output["scores"] if isinstance(output, dict) else output, y)


def called(model: nn.Module, x: Any) -> Any:
    return model(**x) if isinstance(x, dict) else model(x)


def deviation(place: Place, names: list[str]) -> dict[str, float]:
    """Train each network on two stages and plainly; return the largest deviation of weights, statistics, predictions."""
    found: dict[str, float] = {}
    torch.set_default_dtype(torch.float64)
    try:
        for name in names:
            model, net, batches = network(name, sg.TrueGradient())
            optimizer = sgd(model.parameters())
            with Stages(
                net, criterion, sgd, window=0, deterministic=True, timeout_s=30, transport=place.transport
            ) as stages:
                for k, (x, y) in enumerate(batches):
                    torch.manual_seed(k)  # dropout is in the last stage only
                    stages.step(x if place.rank == 0 else None, y)
                    torch.manual_seed(k)
                    optimizer.zero_grad()
                    criterion(called(model, x), y).backward()
                    optimizer.step()
                output = stages.predict(batches[2][0] if place.rank == 0 else None)
                stages.gather()
            state = net.model.state_dict()
            gaps = [
                (state[n].double() - v.double()).abs().max().item() for n, v in model.state_dict().items()
            ]
            if output is not None:
                expected = called(model.eval(), batches[2][0])
                if isinstance(expected, dict):
                    output, expected = output["scores"], expected["scores"]
                gaps.append((output - expected).abs().max().item())
            found[name] = max(gaps)
    finally:
        torch.set_default_dtype(torch.float32)
    return found


def test_two_stages_are_backpropagation(two: InMemory) -> None:
    for found in two.run(deviation, list(NETWORKS)):
        assert found.keys() == NETWORKS.keys()
        assert max(found.values()) < 1e-12, found


def refused(place: Place, what: str) -> None:
    torch.manual_seed(0)
    net = sg.decouple(Beside(what), ["mid"], sg.TrueGradient(), torch.randn(6, 6))
    Stages(net, criterion, sgd, window=0, timeout_s=20, transport=place.transport)


@pytest.mark.parametrize("what", ["gate", "choice"])
def test_what_crosses_beside_the_message_is_refused_by_all(two: InMemory, what: str) -> None:
    errors = {outcome.error for outcome in two.outcomes(refused, what)}
    assert len(errors) == 1
    assert (errors.pop() or "").startswith("CutError: ")


def fails_alone(place: Place) -> None:
    _, net, _ = network("sized", sg.TrueGradient())
    factory = torch.optim.LBFGS if place.rank else sgd
    Stages(net, criterion, factory, window=0, timeout_s=20, transport=place.transport)


def test_a_rank_that_is_refused_stops_the_others_at_once(two: InMemory) -> None:
    first, second = two.outcomes(fails_alone)
    assert (second.error or "").startswith("ConfigError: LBFGS needs a closure")
    assert first.error == f"StageError: stage 1 (rank 1) stopped: {second.error}"


# Ranks that read other batches


def shuffled(place: Place, how: str) -> list[float]:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(64, 6), torch.randint(0, 3, (64,)), torch.arange(64))
    own = torch.Generator().manual_seed(0) if how == "own generator" else None
    loader = DataLoader(data, 16, shuffle=True, generator=own)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 8), nn.Linear(8, 3))
    net = sg.decouple(model, ["3"], sg.SyntheticGradient(context=3), data[:16][0])
    losses: list[float] = []
    with Stages(
        net, criterion, sgd, window=1, deterministic=True, timeout_s=20, transport=place.transport
    ) as stages:
        for _ in range(3):
            for x, y, ids in loader:
                given = {"ids": ids} if how == "ids" else {}
                target = y * 0 if how == "ids" else y  # all labels alike: only the ids tell
                loss = stages.step(x if place.rank == 0 else None, target, **given).loss
                losses += [] if loss is None else [loss.item()]
    return losses


@pytest.mark.parametrize(("how", "what"), [("global generator", "targets"), ("ids", "ids")])
def test_ranks_that_read_different_batches_are_told(two: InMemory, how: str, what: str) -> None:
    first, second = two.outcomes(shuffled, how)
    assert f"belongs to other {what} than this process was given" in (second.error or "")
    assert "generator" in (second.error or "")
    assert first.error == f"StageError: stage 1 (rank 1) stopped: {second.error}"


def test_a_loader_with_a_generator_of_its_own_is_right(two: InMemory) -> None:
    assert len(two.run(shuffled, "own generator")[1]) == 12


# Terms beyond the output, and one norm over all stages


def with_options(place: Place, how: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(0, 3, (8,))
    net = sg.decouple(model, ["1"], sg.TrueGradient(), x)
    decay = lambda own: 0.5 * sum(p.square().sum() for p in own)  # noqa: E731
    options: dict[str, Any] = (
        {"penalty": decay} if how == "penalty" else {"clip_norm": 0.05} if how == "clip" else {}
    )
    loss = (lambda o, t: criterion(o, t) + decay(net.model.parameters())) if how == "criterion" else criterion
    optimizer = sgd(model.parameters())
    with Stages(
        net, loss, sgd, window=0, deterministic=True, timeout_s=20, transport=place.transport, **options
    ) as stages:
        for _ in range(3):
            stages.step(x if place.rank == 0 else None, y)
            optimizer.zero_grad()
            total = criterion(model(x), y) + (decay(model.parameters()) if how == "penalty" else 0)
            total.backward()
            if how == "clip":
                assert nn.utils.clip_grad_norm_(model.parameters(), 0.05) > 0.05
            optimizer.step()
        stages.gather()
    return {n: (net.model.state_dict()[n] - v).abs().max() for n, v in model.state_dict().items()}


def clipped_over_two(place: Place, frozen: bool) -> dict[str, Tensor]:
    """Clip the gradients of updates of two batches; a frozen stage clips nothing, and must not be waited for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    model[2].requires_grad_(not frozen)
    data = [(torch.randn(8, 6, dtype=torch.float64), torch.randint(0, 3, (8,))) for _ in range(6)]
    net = sg.decouple(model, ["1"], sg.TrueGradient(), data[0][0])
    optimizer = sgd([p for p in model.parameters() if p.requires_grad])
    how: dict[str, Any] = {"window": 0, "deterministic": True, "accumulate": 2, "clip_norm": 0.05}
    with Stages(net, criterion, sgd, timeout_s=20, transport=place.transport, **how) as stages:
        for n, (x, y) in enumerate(data):
            record = stages.step(x if place.rank == 0 else None, y)
            assert record.updated == ([] if n % 2 == 0 or (frozen and place.rank) else [stages._name])
            (criterion(model(x), y) / 2).backward()
            if n % 2:
                assert nn.utils.clip_grad_norm_(model.parameters(), 0.05) > 0.05
                optimizer.step()
                optimizer.zero_grad()
        stages.gather()
    return {n: (net.model.state_dict()[n] - v).abs().max() for n, v in model.state_dict().items()}


@pytest.mark.parametrize("frozen", [False, True])
def test_the_norm_of_an_update_of_two_batches_is_clipped(two: InMemory, *, frozen: bool) -> None:
    for found in two.run(clipped_over_two, frozen):
        assert max(found.values()) < 1e-9, found


@pytest.mark.parametrize("how", ["penalty", "clip"])
def test_penalties_and_clipping_are_those_of_the_whole_network(two: InMemory, how: str) -> None:
    for found in two.run(with_options, how):
        assert max(found.values()) < 1e-12, found


def test_a_criterion_beyond_the_output_is_refused_by_all(two: InMemory) -> None:
    first, second = two.outcomes(with_options, "criterion")
    assert (second.error or "").startswith("CutError: a gradient reached parameter '0.")
    assert first.error == f"StageError: stage 1 (rank 1) stopped: {second.error}"


def balanced(place: Place, how: str) -> dict[str, Tensor]:
    """A module leaves a loss in an attribute, which the criterion reads in another process, or its penalty in its own."""
    torch.manual_seed(0)
    model = nn.Sequential(Gated(), nn.ReLU(), nn.Linear(8, 3)).double()
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(0, 3, (8,))
    net = sg.decouple(model, ["1"], sg.TrueGradient(), x)
    term = lambda own: 0.3 * net.model[0].balance  # type: ignore[index,union-attr,operator]  # noqa: E731
    options: dict[str, Any] = {"penalty": {"1": term}} if how == "penalty" else {}
    loss = criterion if how == "penalty" else lambda o, t: criterion(o, t) + term(None)
    optimizer = sgd(model.parameters())
    with Stages(
        net, loss, sgd, window=0, deterministic=True, timeout_s=20, transport=place.transport, **options
    ) as stages:
        for _ in range(3):
            stages.step(x if place.rank == 0 else None, y)
            optimizer.zero_grad()
            (criterion(model(x), y) + 0.3 * model[0].balance).backward()  # type: ignore[operator]
            optimizer.step()
        stages.gather()
    sg.recouple(net)  # what is not here can be copied all the same
    return {n: (net.model.state_dict()[n] - v).abs().max() for n, v in model.state_dict().items()}


def test_a_loss_left_in_an_attribute_is_exact_as_a_penalty(two: InMemory) -> None:
    for found in two.run(balanced, "penalty"):
        assert max(found.values()) < 1e-12, found


def test_a_loss_left_in_an_attribute_of_another_process_is_refused(two: InMemory) -> None:
    first, second = two.outcomes(balanced, "criterion")
    assert "uses a tensor that the process of module '1' makes" in (second.error or "")
    assert "penalty=" in (second.error or "")
    assert first.error == f"StageError: stage 1 (rank 1) stopped: {second.error}"


def frozen(place: Place) -> list[bool]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8).eval(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
    )
    net = sg.decouple(model, ["2"], sg.TrueGradient(), torch.randn(8, 6))
    with Stages(
        net, criterion, sgd, window=0, deterministic=True, timeout_s=20, transport=place.transport
    ) as stages:
        stages.predict(torch.randn(4, 6) if place.rank == 0 else None)
    return [part.training for part in net.model]  # type: ignore[union-attr]


def test_prediction_leaves_a_frozen_part_frozen(two: InMemory) -> None:
    for found in two.run(frozen):
        assert found == [True, False, True, True, True]


def models(place: Place, names: list[str]) -> dict[str, float]:
    """Train models of the table on two stages; return their largest deviations."""
    from synthgrad.lab.bench.networks.zoo import ZOO

    found: dict[str, float] = {}
    for name in names:
        entry = ZOO[name]
        model = entry.model()
        batches = entry.batches((4, 4, 2))
        cuts = sg.propose_cuts(model, batches[0][0])
        net = sg.decouple(model, [cuts[len(cuts) // 2]], sg.TrueGradient(), batches[0][0])
        optimizer = sgd(model.parameters())
        with Stages(
            net, entry.criterion, sgd, window=0, deterministic=True, timeout_s=30, transport=place.transport
        ) as stages:
            for x, y in batches:
                stages.step(x if place.rank == 0 else None, y)
                optimizer.zero_grad()
                entry.criterion(called(model, dict(x) if hasattr(x, "keys") else x), y).backward()
                optimizer.step()
            stages.gather()
        state = net.model.state_dict()
        found[name] = max(
            (state[n].double() - v.double()).abs().max().item() for n, v in model.state_dict().items()
        )
    return found


@pytest.mark.slow(reason="imports transformers in two processes")
def test_models_from_a_library_are_exact(two: InMemory) -> None:
    pytest.importorskip("transformers")
    for found in two.run(models, ["Llama", "BERT", "ViT"]):
        assert max(found.values()) < 1e-12, found

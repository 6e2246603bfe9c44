"""What the processes of the tests run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthgrad import SyntheticGradient, decouple
from synthgrad.core import Decoupled, Rule
from synthgrad.engines import Carry, InProcess, Lag, Stages
from synthgrad.optim import ErrorFeedback
from synthgrad.rules import LocalLoss, NoBackprop, Sobolev, TrueGradient
from tests.engines.stages.places import Place

INPUTS, WIDTH, CLASSES, BATCH = 6, 8, 4, 10

Batches = list[tuple[Tensor, Tensor]]

RULES: dict[str, Callable[[], Rule]] = {
    "cdni": lambda: SyntheticGradient(context=CLASSES),
    "cdni, table": lambda: SyntheticGradient(context=CLASSES, learned_table=True),
    "dni": lambda: SyntheticGradient((12,)),
    "local_loss": lambda: LocalLoss(CLASSES),
    "sobolev": lambda: Sobolev(CLASSES),
    "no_bprop": NoBackprop,
    "true": TrueGradient,
}


def network(num_modules: int, rule: str, kind: str = "dense") -> Decoupled:
    """Return a network of blocks with BatchNorm, cut after each but the last; equal in every process."""
    torch.manual_seed(0)
    if kind != "dense":
        return _other(kind, rule)
    blocks: list[nn.Module] = [
        nn.Sequential(nn.Linear(WIDTH if k else INPUTS, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())
        for k in range(num_modules - 1)
    ]
    model = nn.Sequential(*blocks, nn.Linear(WIDTH, CLASSES)).double()
    cuts = [str(k) for k in range(num_modules - 1)]
    return decouple(model, cuts, RULES[rule](), batches(1)[0][0])


def _other(kind: str, rule: str) -> Decoupled:
    """Return a convolutional or a recurrent network of two modules, on the same data seen as images or sequences."""
    if kind == "convolutional":
        first: list[nn.Module] = [nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, WIDTH, 3, padding=1)]
        first += [nn.BatchNorm2d(WIDTH, affine=False), nn.ReLU()]  # statistics alone are gathered too
        last: list[nn.Module] = [nn.Conv2d(WIDTH, 2, 3, padding=1), nn.Flatten(), nn.Linear(12, CLASSES)]
    else:
        first = [nn.Unflatten(1, (3, 2)), Carry(nn.LSTM(2, WIDTH, batch_first=True))]
        last = [Carry(nn.LSTM(WIDTH, WIDTH, batch_first=True)), nn.Flatten(), nn.Linear(3 * WIDTH, CLASSES)]
    model = nn.Sequential(nn.Sequential(*first), nn.Sequential(*last)).double()
    return decouple(model, ["0"], RULES[rule](), batches(1)[0][0])


def batches(count: int, seed: int = 3) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(BATCH, INPUTS, generator=generator, dtype=torch.float64),
            torch.randint(CLASSES, (BATCH,), generator=generator),
        )
        for _ in range(count)
    ]


def fed_back(parameters: Any) -> torch.optim.Optimizer:
    return ErrorFeedback(torch.optim.Adam(parameters, 1e-2))


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-2)


def per_example(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y, reduction="none")


def weights(net: Decoupled) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in net.state_dict().items()}


def trained(
    place: Place, world: int, rule: str, steps: int, kind: str = "dense", **options: Any
) -> dict[str, Any]:
    """Train as stages, and return the gathered weights, the losses and the last stage's prediction."""
    net, data = network(world, rule, kind), batches(steps)
    optimizer = options.pop("optimizer", adam)
    with Stages(net, per_example, optimizer, transport=place.transport, **options) as stages:
        losses = [stages.step(x if place.rank == 0 else None, y).loss for x, y in data]
        output = stages.predict(data[0][0] if place.rank == 0 else None)
        stages.gather()
        return {
            "weights": weights(net),
            "losses": [None if v is None else float(v) for v in losses],
            "output": output,
            "window": stages.window,
            "sent_bytes": stages.sent_bytes,
        }


def in_process(
    world: int, rule: str, steps: int, lag: int, kind: str = "dense", **options: Any
) -> dict[str, Any]:
    """Train the same in one process, with the lags simulated."""
    net, data = network(world, rule, kind), batches(steps)
    lags = {name: Lag(observe=lag) for name in net.interfaces}
    engine = InProcess(net, per_example, options.pop("optimizer", adam), lags=lags, **options)
    losses = [float(engine.step(x, y).loss) for x, y in data]  # pyright: ignore[reportArgumentType]
    found = weights(net)
    with torch.no_grad():
        output = net.eval()(data[0][0])
    return {"weights": found, "losses": losses, "output": output}


def with_travelling_targets(place: Place, steps: int) -> dict[str, Tensor]:
    net, data = network(2, "cdni"), batches(steps)
    options = {"window": 1, "deterministic": True, "target": data[0][1], "transport": place.transport}
    with Stages(net, per_example, adam, **options) as stages:
        for x, y in data:
            stages.step(*((x, y) if place.rank == 0 else ()))
        stages.gather()
    return weights(net)


def raises_at(place: Place, world: int, who: int, step: int) -> None:
    """Raise in one process in the middle of training."""
    net = network(world, "cdni")
    with Stages(net, per_example, adam, transport=place.transport, timeout_s=20) as stages:
        for k, (x, y) in enumerate(batches(30)):
            if place.rank == who and k == step:
                raise ValueError("the data is on fire\nand more")
            stages.step(x if place.rank == 0 else None, y)


def delayed(place: Place, world: int, seed: int, steps: int, longest_s: float, **options: Any) -> list[int]:
    """Train with delays at random before steps, and return how late answers may be at the end."""
    generator = torch.Generator().manual_seed(seed * 100 + place.rank)
    net = network(world, "cdni")
    windows: list[int] = []
    with Stages(net, per_example, adam, transport=place.transport, timeout_s=30, **options) as stages:
        for x, y in batches(steps):
            if torch.rand((), generator=generator) < 0.3:
                place.sleep(float(torch.rand((), generator=generator)) * longest_s)
            stages.step(x if place.rank == 0 else None, y)
            windows.append(stages.window)
    return windows


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1, momentum=0.9)

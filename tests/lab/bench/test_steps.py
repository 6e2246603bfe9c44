"""Steps that benchmarks call: every case of them trains, and the reference is the loop it says it is."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthgrad.core import Decoupled, decouple
from synthgrad.engines import InProcess, Locked
from synthgrad.lab.bench import steps
from synthgrad.lab.bench.steps import HAND_WRITTEN, Network, StepCase, make_step
from synthgrad.lab.tasks import convolutional, cut_names, fully_connected
from synthgrad.lab.training import trainers
from synthgrad.lab.training.compiled import compile_modules
from synthgrad.lab.training.methods import METHODS
from synthgrad.rules import SyntheticGradient

WIDTH, LAYERS, SEED = 16, 3, 5
NETWORK = Network(WIDTH, LAYERS)
CASES = [
    StepCase("backprop", HAND_WRITTEN),
    StepCase("backprop", "plain"),
    *(StepCase(m, "in-process") for m in METHODS if m != "backprop"),
    # A plain loop uses no synthetic inputs, and teaches no rule of them; nothing is late in it, or corrected.
    *(
        StepCase(m, "plain")
        for m, method in METHODS.items()
        if m not in ("backprop", "delayed") and method.inputs is None and not method.engines
    ),
    StepCase("cdni", "in-process", update_prob=0.5),
]
#: The compiler uses what PyTorch deprecates.
OWN_WARNINGS = pytest.mark.filterwarnings("ignore::DeprecationWarning")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler on the path"
)


def batches(number: int = 3, size: int = 24) -> list[tuple[Tensor, Tensor]]:
    """Return batches in which the class can be read off the input."""
    generator = torch.Generator().manual_seed(1)
    made: list[tuple[Tensor, Tensor]] = []
    for _ in range(number):
        y = torch.randint(10, (size,), generator=generator)
        x = F.one_hot(y, 12).float() + 0.1 * torch.randn(size, 12, generator=generator)
        made.append((x, y))
    return made


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Return a list that fills with the networks that steps are made for; the last one is trained."""
    made: list[nn.Module] = []

    def remember(function: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            made.append(function(*args, **kwargs))
            return made[-1]

        return called

    monkeypatch.setattr(steps, "fully_connected", remember(fully_connected))
    monkeypatch.setattr(trainers, "decouple", remember(decouple))
    return made


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 3e-4, fused=True)


def reference() -> nn.Sequential:
    torch.manual_seed(SEED)
    return fully_connected((12,), 10, LAYERS, WIDTH)


def plain(net: nn.Module) -> nn.Module:
    return net.model if isinstance(net, Decoupled) else net


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in net.named_parameters()}


@torch.no_grad()
def loss_of(net: nn.Module) -> float:
    trial = copy.deepcopy(net)  # with BatchNorm's averages as they are
    return float(sum(F.cross_entropy(trial(x), y) for x, y in batches()))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kind_of_step_trains(case: StepCase, networks: list[nn.Module]) -> None:
    step = make_step(case, NETWORK, batches(), SEED)
    net = networks[-1]
    first = weights(net)
    before = loss_of(net)
    for _ in range(60):
        step()
    assert loss_of(net) < before
    last = weights(net)
    still = {n for n in first if torch.equal(first[n], last[n])}
    hidden = {n for n in first if n.startswith("model.layer")}
    assert still == (hidden if case.method == "no_bprop" else set())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_start_from_the_same_weights(case: StepCase, networks: list[nn.Module]) -> None:
    make_step(case, NETWORK, batches(), SEED)
    started = weights(plain(networks[-1]))
    for name, value in weights(reference()).items():
        assert torch.equal(started[name], value), name


def test_the_hand_written_loop_is_locked_training_bit_for_bit(networks: list[nn.Module]) -> None:
    feed = batches()
    step = make_step(StepCase("backprop", HAND_WRITTEN), NETWORK, feed, SEED)
    engine = Locked(reference(), nn.CrossEntropyLoss(), adam)
    for k in range(20):
        step()
        engine.step(*feed[k % len(feed)])
    for (name, own), other in zip(
        networks[-1].state_dict().items(), engine.net.state_dict().values(), strict=True
    ):
        assert torch.equal(own, other), name


@pytest.mark.parametrize(
    ("case", "prob"),
    [
        (StepCase("cdni", "in-process"), 1.0),
        (StepCase("cdni", "in-process", update_prob=0.5), 0.5),
    ],
    ids=str,
)
def test_the_in_process_step_is_the_engines(case: StepCase, prob: float, networks: list[nn.Module]) -> None:
    feed = batches()
    step = make_step(case, NETWORK, feed, SEED)
    model = reference()
    net = decouple(model, cut_names(model), SyntheticGradient(context=10), feed[0][0])
    generator = torch.Generator().manual_seed(SEED)
    engine = InProcess(net, nn.CrossEntropyLoss(), adam, update_prob=prob, generator=generator)
    for k in range(20):
        step()
        engine.step(*feed[k % len(feed)])
    for (name, own), other in zip(networks[-1].state_dict().items(), net.state_dict().values(), strict=True):
        assert torch.equal(own, other), name


def test_making_a_step_leaves_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    make_step(CASES[0], NETWORK, batches(), SEED)
    assert torch.equal(torch.random.get_rng_state(), before)


# Convolutional


def images() -> list[tuple[Tensor, Tensor]]:
    """Return batches of small images, channels last, in which the class is where it is bright."""
    made: list[tuple[Tensor, Tensor]] = []
    for k in range(2):
        generator = torch.Generator().manual_seed(k)
        y = torch.randint(10, (20,), generator=generator)
        x = 0.1 * torch.randn(20, 3, 12, 12, generator=generator)
        x[torch.arange(20), 0, y] += 1.0
        made.append((x.to(memory_format=torch.channels_last), y))
    return made


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Return a list that fills with the convolutional networks that steps are made for."""
    made: list[nn.Module] = []

    def remember(*args: Any) -> nn.Module:
        made.append(convolutional(*args))
        return made[-1]

    monkeypatch.setattr(steps, "convolutional", remember)
    return made


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_kind_of_step_trains_a_convolutional_network(
    case: StepCase, precision: str, networks: list[nn.Module], convolutions: list[nn.Module]
) -> None:
    step = make_step(case, Network(4, 3, "cnn", precision), images(), SEED)
    net = (networks or convolutions)[-1]
    first = {n: p.clone() for n, p in plain(net).named_parameters()}
    for _ in range(30):
        step()
    last = dict(plain(net).named_parameters())
    still = {n for n in first if torch.equal(first[n], last[n])}
    hidden = {n for n in first if n.startswith("layer")}
    assert still == (hidden if case.method == "no_bprop" else set())
    assert all(bool(p.isfinite().all()) for p in last.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_locked_backpropagation_is_the_hand_written_loop_bit_for_bit(
    precision: str, convolutions: list[nn.Module]
) -> None:
    for engine in (HAND_WRITTEN, "plain"):
        step = make_step(StepCase("backprop", engine), Network(4, 3, "cnn", precision), images(), SEED)
        for _ in range(5):
            step()
    by_hand, ours = (net.state_dict() for net in convolutions)
    assert all(torch.equal(value, ours[name]) for name, value in by_hand.items())


# Compiled


def differences(first: nn.Module, second: nn.Module) -> dict[str, float]:
    pairs = zip(first.named_parameters(), second.parameters(), strict=True)
    return {n: float((a - b).detach().abs().max()) for (n, a), b in pairs}


@pytest.mark.slow(reason="a C++ compiler builds both passes of every module")
@pytest.mark.compiles
@OWN_WARNINGS
@needs_compiler
def test_compiled_modules_train_like_eager_ones() -> None:
    x, y = batches(1)[0]
    trained: list[Decoupled] = []
    for compiled in (False, True):
        model = reference()
        net = decouple(model, cut_names(model), SyntheticGradient(context=10), x)
        if compiled:
            compile_modules(net)
        engine = InProcess(net, nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, 0.1))
        for _ in range(10):
            assert engine.step(x, y).updated == ["layer1", "layer2", "output"]
        trained.append(net)
    assert max(differences(*trained).values()) < 1e-5
    moved = differences(reference(), trained[0].model)
    assert min(v for n, v in moved.items() if n.endswith("weight")) > 1e-4  # BatchNorm undoes a bias


@pytest.mark.compiles
@OWN_WARNINGS
@needs_compiler
def test_the_compiled_loop_has_the_gradients_of_the_eager_one(networks: list[nn.Module]) -> None:
    trained: list[nn.Module] = []
    for compiled in (False, True):
        step = make_step(
            StepCase("backprop", HAND_WRITTEN, compiled=compiled), Network(WIDTH, 2), batches(), SEED
        )
        trained.append(networks[-1])
        step()  # its gradients stay until the next
    for (name, ours), theirs in zip(trained[1].named_parameters(), trained[0].parameters(), strict=True):
        assert ours.grad is not None, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)

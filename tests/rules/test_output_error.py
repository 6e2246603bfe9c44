"""Direct feedback alignment, written as a user would: exact where its answer is known, in every engine that takes it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, Credit, CutError, Decoupled, Info, Message, Rule, Site
from synthgrad.engines import Boundary, Clocked, Edge, InProcess, Lag, LayerParallel, Locked, Node, Stages
from synthgrad.engines.stages.transport import run_in_memory

CUTS = ["0", "1", "2"]
CLASSES = 3


class DirectFeedback(Rule):
    """Credit ``e B`` with fixed ``B``, for the output error ``e`` (Nøkland 2016).

    Args:
        feedback: by interface, ``(outputs, features)``.
    """

    listens, waits, needs_output_error = False, True, True

    def __init__(self, feedback: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._given = feedback

    def build(self, site: Site) -> None:
        self.register_buffer("feedback", self._given[site.name])

    def credit(self, h: Tensor, info: Info) -> Credit:
        return Credit(None, wait=True)

    def accept(self, message: Message, info: Info) -> Tensor:
        assert message.output_error is not None
        assert message.output_error.dtype == self.feedback.dtype
        return message.output_error @ self.feedback  # type: ignore[operator,return-value]


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)).double()


def jacobians(model: nn.Sequential) -> dict[str, Tensor]:
    """Return the derivative of the output by each message of a linear network: what true feedback is."""
    whole, found = torch.eye(CLASSES, dtype=torch.float64), dict[str, Tensor]()
    for k in (3, 2, 1):
        whole = whole @ model[k].weight.detach()  # type: ignore[union-attr,operator]
        found[str(k - 1)] = whole.clone()
    return found


def batch(k: int = 0, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(size, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (size,), generator=generator)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def each(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y, reduction="none")


def summed(output: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(output, y, reduction="sum") / 4


def cut(model: nn.Module, rule: Any, **options: Any) -> Decoupled:
    return sg.decouple(model, CUTS, rule, batch()[0], **options)


def plain_loop(net: Decoupled, criterion: Any) -> None:
    x, y = batch()
    optimizer = sgd(net.parameters())
    criterion(net(x, context=y), y).mean().backward()
    optimizer.step()


def of_engine(engine: Any) -> Callable[[Decoupled, Any], None]:
    return lambda net, criterion: engine(net, criterion, sgd).step(*batch())


ENGINES: dict[str, Callable[[Decoupled, Any], None]] = {
    "plain loop": plain_loop,
    "locked": of_engine(Locked),
    "in process": of_engine(InProcess),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("criterion", [F.cross_entropy, each, summed])
def test_with_the_true_jacobian_it_is_backpropagation(engine: str, criterion: Any) -> None:
    model = linear()
    plain, (x, y) = copy.deepcopy(model), batch()
    optimizer = sgd(plain.parameters())
    criterion(plain(x), y).mean().backward()
    optimizer.step()
    reduction: Any = (lambda h: 4.0) if criterion is summed else "mean"
    net = cut(model, DirectFeedback(jacobians(model)), reduction=reduction)
    ENGINES[engine](net, criterion)
    for name, parameter in plain.named_parameters():
        assert torch.allclose(net.model.get_parameter(name), parameter, rtol=1e-12, atol=1e-14), name


def test_with_random_feedback_it_is_the_formula() -> None:
    torch.manual_seed(3)
    feedback = {
        name: torch.randn(CLASSES, n, dtype=torch.float64) for name, n in zip(CUTS, (7, 6, 6), strict=True)
    }
    model = linear()
    x, y = batch()
    h = [x]
    for layer in model:
        h.append(layer(h[-1]).detach())
    error = (h[-1].softmax(1) - F.one_hot(y, CLASSES)) / len(x)
    net = cut(model, DirectFeedback(feedback))
    F.cross_entropy(net(x, context=y), y).backward()
    for k, name in enumerate(CUTS):
        expected = (error @ feedback[name]).T @ h[k]
        assert torch.allclose(net.model.get_parameter(f"{k}.weight").grad, expected), name  # type: ignore[arg-type]
    assert torch.allclose(net.model.get_parameter("3.weight").grad, error.T @ h[3])  # type: ignore[arg-type]


def _stage(transport: Any, window: int) -> dict[str, Tensor]:
    net = cut(linear(), DirectFeedback(jacobians(linear())))
    how: dict[str, Any] = {"window": window, "deterministic": True, "accumulate": 1, "timeout_s": 60}
    with Stages(net, F.cross_entropy, sgd, transport=transport, **how) as stages:
        for k in range(6):
            stages.step(*batch(k))
        stages.gather()
    return net.state_dict()


@pytest.mark.parametrize("window", [0, 1])
def test_stages_send_it_down_with_the_messages(window: int) -> None:
    net = cut(linear(), DirectFeedback(jacobians(linear())))
    trainer = InProcess(net, F.cross_entropy, sgd, lags=dict.fromkeys(CUTS, Lag(observe=window)))
    for k in range(6):
        trainer.step(*batch(k))
    for state in run_in_memory(4, _stage, window):
        for key, value in net.state_dict().items():
            assert torch.allclose(state[key], value, rtol=1e-12), key


def test_it_waits_with_a_message_that_is_late_and_survives_a_resume() -> None:
    lags = dict.fromkeys(CUTS, Lag(observe=1))

    def make() -> tuple[Decoupled, InProcess]:
        net = cut(linear(), DirectFeedback(jacobians(linear())))
        return net, InProcess(net, F.cross_entropy, sgd, lags=lags)

    whole, trainer = make()
    for k in range(8):
        trainer.step(*batch(k))
    net, first = make()
    for k in range(5):
        first.step(*batch(k))
    weights, state = copy.deepcopy(net.state_dict()), copy.deepcopy(first.state_dict())
    net, second = make()
    net.load_state_dict(weights)
    second.load_state_dict(state)
    for k in range(5, 8):
        second.step(*batch(k))
    for key, value in whole.state_dict().items():
        assert torch.equal(net.state_dict()[key], value), key


def test_a_rule_that_hands_over_passes_it_on() -> None:
    model = linear()
    net = cut(model, sg.HandOver(DirectFeedback(jacobians(model)), warm_up=1))
    twin = cut(model, DirectFeedback(jacobians(model)))
    for one in (net, twin):
        InProcess(one, F.cross_entropy, sgd).step(*batch())
    for name, parameter in twin.model.named_parameters():
        assert torch.allclose(net.model.get_parameter(name), parameter), name


class Two(nn.Module):
    """Returns two tensors that gradients flow through."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.low(x)
        return self.high(h), self.high(h).square()


class Impatient(DirectFeedback):
    waits = False

    def credit(self, h: Tensor, info: Info) -> Credit:
        return Credit(torch.zeros_like(h))


def _two() -> Decoupled:
    return sg.decouple(Two().double(), ["low"], DirectFeedback({"low": torch.zeros(3, 7)}), batch()[0])


def _mixed() -> Decoupled:
    feedback = DirectFeedback(jacobians(linear()))
    return cut(linear(), {"0": feedback, "1": sg.SyntheticGradient(), "2": feedback})


def _alike() -> Decoupled:
    parts = [nn.Linear(a, 6) for a in (5, 6, 6)]
    rule = DirectFeedback(dict.fromkeys(CUTS, torch.zeros(CLASSES, 6)))
    return cut(nn.Sequential(*parts, nn.Linear(6, CLASSES)).double(), rule)


def _clocked() -> None:
    nodes = [Node("A", nn.Linear(3, 3)), Node("B", nn.Linear(3, 3))]
    rule = DirectFeedback({})
    Clocked(nodes, [Edge("A", "B", rule)], {"B": F.mse_loss}, sgd, example={"A": torch.zeros(2, 3)})


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: InProcess(_mixed(), F.cross_entropy, sgd), ConfigError, "interface '0' .* SyntheticGradient at interface '1' above"),
        (lambda: InProcess(cut(linear(), Impatient(jacobians(linear()))), F.cross_entropy, sgd), ConfigError, "it gives credit before"),
        (lambda: LayerParallel(_alike(), F.cross_entropy, sgd), ConfigError, "all modules run at once"),
        (lambda: Boundary(DirectFeedback({}), torch.zeros(2, 3)), ConfigError, "between two unrolls"),
        (_clocked, ConfigError, "losses of its own"),
        (lambda: _two()(batch()[0]), CutError, "returns 2 floating tensors"),
        (lambda: InProcess(_two(), lambda o, y: o[0].sum(), sgd).step(*batch()), CutError, "returns 2 floating tensors"),
        (
            lambda: run_in_memory(2, lambda t: Stages(_two(), lambda o, y: o[0].sum(), sgd, window=0, transport=t)),
            CutError,
            "returns 2 floating tensors",
        ),
    ],
)  # fmt: skip
def test_where_it_is_not_known_the_rule_is_refused(
    make: Callable[[], Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        make()


def test_the_plain_loop_knows_it_whatever_rules_are_above() -> None:
    net = _mixed()
    x, y = batch()
    F.cross_entropy(net(x, context=y), y).backward()
    plain = linear()
    F.cross_entropy(plain(x), y).backward()
    assert torch.allclose(net.model.get_parameter("0.weight").grad, plain[0].weight.grad)  # type: ignore[arg-type]


def test_in_half_precision_it_comes_in_the_precision_of_the_rule() -> None:
    model = linear().to(torch.bfloat16)
    feedback = {name: f.bfloat16() for name, f in jacobians(linear()).items()}
    net = cut_in(model, DirectFeedback(feedback))
    x, y = batch()
    F.cross_entropy(net(x.bfloat16(), context=y).float(), y).backward()
    assert net.model.get_parameter("0.weight").grad is not None


def cut_in(model: nn.Module, rule: Rule) -> Decoupled:
    return sg.decouple(model, CUTS, rule, batch()[0].bfloat16())


def test_a_schedule_of_pytorch_refuses_it() -> None:
    schedules = pytest.importorskip(
        "synthgrad.engines.stages.schedule", reason="needs torch.distributed.pipelining"
    )

    class Stage:
        stage_index, num_stages, submod, device = 0, 2, nn.Linear(3, 3), torch.device("cpu")

    make: Any = schedules.ScheduleDecoupled
    with pytest.raises(ConfigError, match="after stage 0' needs the network's output error"):
        make(Stage(), 2, F.mse_loss, rule=DirectFeedback({}), example=torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="is a class"):
        make(Stage(), 2, F.mse_loss, rule=DirectFeedback, example=torch.zeros(2, 3))

"""The slips of a new user end in one sentence that says what was given, what was expected and what to do."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import SynthgradError
from synthgrad.engines import Boundary, Clocked, InProcess, Lag, LayerParallel, Locked, Node, Recurrent

X, Y = torch.randn(16, 4), torch.randint(0, 3, (16,))
XS, YS = torch.randn(5, 6, 4), torch.randint(0, 3, (5, 6))


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def cut(at: Any = ("1",), rule: Any = None, example: Any = X, **options: Any) -> Any:
    return sg.decouple(
        model(), at, sg.SyntheticGradient(context=3) if rule is None else rule, example, **options
    )


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-3)


def in_process(criterion: Any = F.cross_entropy, optimizer: Any = adam, **options: Any) -> InProcess:
    return InProcess(cut(), criterion, optimizer, **options)


def blocks() -> Any:
    parts = [nn.Sequential(nn.Linear(a, 8)) for a in (4, 8, 8)]
    return sg.decouple(nn.Sequential(*parts, nn.Linear(8, 3)), ["0", "1", "2"], sg.NoBackprop(), X)


class Cell(nn.Module):
    """A recurrent network with an explicit state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, state: Tensor) -> Any:
        out = []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            out.append(self.head(state))
        return torch.stack(out, 1), state

    def initial_state(self, batch_size: int, device: Any, dtype: Any) -> Any:
        return torch.zeros(batch_size, 8, device=device, dtype=dtype)


class Layers(nn.Module):
    """A recurrent network whose state has its layers first."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, state: Any) -> Any:
        h, state = self.lstm(x, state)
        return self.head(h), state

    def initial_state(self, batch_size: int, device: Any, dtype: Any) -> Any:
        return (torch.zeros(1, batch_size, 8, device=device, dtype=dtype),) * 2


class OneArgument(Cell):
    def initial_state(self, batch_size: int) -> Tensor:  # type: ignore[override]
        return torch.zeros(batch_size, 8)


class NoState(Cell):
    initial_state = None  # type: ignore[assignment]


class OutputsOnly(Cell):
    def forward(self, x: Tensor, state: Tensor) -> Any:
        return super().forward(x, state)[0]


class Swapped(Cell):
    def forward(self, x: Tensor, state: Tensor) -> Any:
        return super().forward(x, state)[::-1]


class Stateless(Cell):
    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x, torch.zeros(5, 8))


def over_time(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), y.flatten())


def recurrent(net: nn.Module | None = None, state: Any = None, **options: Any) -> Recurrent:
    boundary = Boundary(sg.SyntheticGradient(), torch.zeros(5, 8) if state is None else state, **options)
    return Recurrent(Cell() if net is None else net, boundary, over_time, adam)


def clocked(losses: Any = None, example: Any = None) -> Clocked:
    return Clocked(
        [Node("A", nn.Linear(3, 3))],
        [],
        {"A": F.mse_loss} if losses is None else losses,
        adam,
        example={"A": torch.zeros(2, 3)} if example is None else example,
    )


def unroll_twice(trainer: Recurrent, second: int) -> None:
    trainer.step(XS, YS)
    trainer.step(XS[:second], YS[:second])


def without_gradients() -> None:
    with torch.no_grad():
        in_process().step(X, Y)


def in_context(labels: Any) -> None:
    with sg.context(labels):
        cut()(X)


def load_plain() -> None:
    cut().load_state_dict(model().state_dict())


SLIPS: dict[str, tuple[Callable[[], object], str]] = {
    # an optimizer in place of a factory
    "optimizer, in process": (
        lambda: in_process(optimizer=torch.optim.Adam(model().parameters())),
        r"optimizer=an Adam: .* each module has its own; write lambda params: torch.optim.Adam",
    ),
    "optimizer, locked": (
        lambda: Locked(cut(), F.cross_entropy, torch.optim.SGD(model().parameters(), 0.1)),  # type: ignore[arg-type]
        r"write lambda params: torch.optim.SGD",
    ),
    "optimizer, layer-parallel": (
        lambda: LayerParallel(blocks(), F.cross_entropy, torch.optim.Adam(model().parameters())),  # type: ignore[arg-type]
        "each module has its own",
    ),
    "optimizers in a list": (
        lambda: in_process(optimizer=[torch.optim.Adam(model().parameters())]),
        "each module has its own",
    ),
    # rules
    "rule class": (
        lambda: cut(rule=sg.SyntheticGradient),
        r"is a class, .* rule=SyntheticGradient\(\.\.\.\)",
    ),
    "rule class by name": (lambda: cut(rule={"1": sg.LocalLoss}), r"is a class, .* rule=LocalLoss\(\.\.\.\)"),
    "rule by name": (lambda: cut(rule="dni"), r"rule='dni': expected a rule"),
    "input rule as rule": (
        lambda: cut(rule=sg.SyntheticInput()),
        "expected a rule, an object of synthgrad.Rule",
    ),
    "rule as input rule": (lambda: cut(inputs=sg.NoBackprop()), "an object of synthgrad.InputRule"),
    "input rule class": (lambda: cut(inputs=sg.SyntheticInput), r"inputs=SyntheticInput\(\.\.\.\)"),
    "rule class inside": (lambda: sg.HandOver(sg.NoBackprop), r"is a class, .* rule=NoBackprop"),  # type: ignore[arg-type]
    "rule class at a boundary": (
        lambda: Boundary(sg.SyntheticGradient, torch.zeros(5, 8)),  # type: ignore[arg-type]
        "is a class",
    ),
    # settings of rules
    "hidden": (lambda: sg.SyntheticGradient(hidden=64), r"hidden=64: .* write hidden=\(64,\)"),  # type: ignore[arg-type]
    "hidden of a critic": (lambda: sg.Sobolev(3, hidden=64), r"hidden=\(64,\)"),  # type: ignore[arg-type]
    "hidden of a head": (lambda: sg.rules.heads.linear_head(64), r"hidden=\(64,\)"),  # type: ignore[arg-type]
    "hidden of a model": (lambda: sg.rules.models.dense(64), r"hidden=\(64,\)"),  # type: ignore[arg-type]
    "hidden of an input": (lambda: sg.SyntheticInput(64), r"hidden=\(64,\)"),  # type: ignore[arg-type]
    "hidden as text": (lambda: sg.SyntheticGradient(hidden="64"), "hidden='64': expected widths"),
    "context": (lambda: sg.SyntheticGradient(context=10.0), r"context=10\.0: .* classes.* write 10"),  # type: ignore[arg-type]
    "labels as context": (
        lambda: sg.SyntheticGradient(context=Y),  # type: ignore[arg-type]
        r"context=a tensor of shape \(16,\): expected the number of classes",
    ),
    "largest label": (lambda: sg.LocalLoss(Y.max() + 1), r"write int\(classes\)"),  # type: ignore[arg-type]
    "context, solved": (lambda: sg.rules.LeastSquaresGradient(10.0), "write 10"),  # type: ignore[arg-type]
    "size of the data": (lambda: sg.StaleGradient(100.0), r"num_examples=100\.0: .* write 100"),  # type: ignore[arg-type]
    "kernel": (lambda: sg.SyntheticGradient(kernel=5.0), "odd number"),  # type: ignore[arg-type]
    "module as model": (
        lambda: sg.SyntheticGradient(model=nn.Linear(8, 8)),  # type: ignore[arg-type]
        "expected a factory",
    ),
    "module as head": (lambda: sg.LocalLoss(3, head=nn.Linear(8, 3)), "expected a factory"),  # type: ignore[arg-type]
    # models, cuts and examples
    "model class": (
        lambda: sg.decouple(nn.Sequential, ["0"], sg.NoBackprop(), X),
        "class Sequential .* call it",
    ),  # type: ignore[type-var]
    "function": (lambda: sg.decouple(model, ["0"], sg.NoBackprop(), X), "a function as model.* call it"),  # type: ignore[type-var]
    "one name": (lambda: cut(at="1"), r"at=\['1'\]"),
    "one number": (lambda: cut(at=1), r"at=\['1'\]"),
    "numbers": (lambda: cut(at=[1]), r"at=\[1, …\].*write '1'"),
    "module as name": (
        lambda: sg.decouple(net := model(), [net[1]], sg.NoBackprop(), X),  # type: ignore[list-item]
        "write '1'",
    ),
    "typo": (
        lambda: sg.decouple(Cell(), ["cel"], sg.NoBackprop(), (XS, torch.zeros(5, 8))),
        r"cannot cut after 'cel'.*did you mean 'cell'\?",
    ),
    "no example": (lambda: cut(example=None), "got None as example"),
    "example as an array": (lambda: cut(example=X.numpy()), r"convert it by torch\.as_tensor"),
    "loader as example": (lambda: cut(example=torch.utils.data.DataLoader([X])), "one of its batches"),  # type: ignore[arg-type]
    "shape as example": (lambda: cut(example=(16, 4)), r"takes \(input.*\) and got 2 positional arguments"),
    "example with targets": (lambda: cut(example=(X, Y)), "labels by context="),
    "numbers as example": (lambda: cut(example=[1.0]), "expected a tensor"),
    "example in float64": (lambda: cut(example=X.double()), r"model is in torch\.float32 .* torch\.float64"),
    "example elsewhere": (lambda: cut(example=X.to("meta")), r"model is on cpu .* on meta; move"),
    "model elsewhere": (
        lambda: sg.decouple(model().to("meta"), ["1"], sg.NoBackprop(), X),
        "model is on meta .* on cpu; move",
    ),
    "batch dimension as text": (lambda: cut(batch_dim="0"), "batch_dim='0'"),
    "state of the plain model": (load_plain, r"load it by net\.model\.load_state_dict"),
    # criteria
    "criterion class": (lambda: in_process(nn.CrossEntropyLoss), r"is a class.*CrossEntropyLoss\(\)"),
    "no criterion": (lambda: in_process(None), "criterion=None"),
    "criterion and optimizer swapped": (
        lambda: InProcess(cut(), adam, F.cross_entropy),
        "cannot be called with two arguments.*the order is net, criterion, optimizer",
    ),
    "loss as a number": (
        lambda: in_process(lambda o, y: F.cross_entropy(o, y).item()).step(X, Y),
        r"without \.item\(\)",
    ),
    "loss without a graph": (
        lambda: in_process(lambda o, y: F.cross_entropy(o.detach(), y)).step(X, Y),
        "a loss without a graph",
    ),
    # settings of engines
    "lag as a number": (lambda: in_process(lags={"1": 2}), r"lags=\{'1': Lag\(observe=2\)\}"),
    "one lag for all": (lambda: in_process(lags=Lag(0, 2)), "expected a Lag by interface"),
    "rate as options": (lambda: in_process(rule_options=1e-3), r"a mapping such as \{'lr'"),
    "probability as text": (lambda: in_process(update_prob="0.5"), "update_prob='0.5'"),
    "seed as generator": (lambda: in_process(update_prob=0.5, generator=0), r"manual_seed\(0\)"),
    "monitor": (lambda: in_process(monitor=True), r"monitor=True: .*Monitor\(every=50\)"),
    "timeline": (lambda: in_process(timeline=[]), r"timeline=\[\]: .*Timeline\(\)"),
    # batches
    "no batch": (lambda: in_process().step(), "got 0 positional arguments"),
    "batch as an array": (lambda: in_process().step(X.numpy(), Y), r"torch\.as_tensor"),
    "batch as a pair": (lambda: in_process().step((X, Y)), "the model's inputs alone"),
    "batch as a pair, locked": (
        lambda: Locked(model(), F.cross_entropy, adam).step((X, Y)),
        "the model's inputs alone",
    ),
    "context by position": (lambda: cut()(X, Y), r"labels by context="),
    "context as a list": (
        lambda: cut()(X, context=Y.tolist()),
        "expected a tensor with a row for each example",
    ),
    "context as a list, around": (lambda: in_context(Y.tolist()), r"the context: got .* torch\.as_tensor"),
    "ids as a list": (
        lambda: InProcess(cut(rule=sg.StaleGradient(16)), F.cross_entropy, adam).step(
            X, Y, ids=list(range(16))
        ),  # type: ignore[arg-type]
        r"ids are .* torch\.as_tensor",
    ),
    "never measured": (lambda: sg.Monitor(every=0), "every=0: expected the number of messages"),
    "monitor of the plain loop": (lambda: setattr(cut(), "monitor", True), r"Monitor\(every=50\)"),
    "no model to propose for": (lambda: sg.propose_cuts(model, X), "the function model as model"),  # type: ignore[arg-type]
    "proposal in float64": (
        lambda: sg.propose_cuts(model(), X.double()),
        r"torch\.float32 .* torch\.float64",
    ),
    "without gradients": (without_gradients, r"under torch\.no_grad"),
    # clocked networks
    "losses as a function": (
        lambda: clocked(losses=F.mse_loss),
        "losses: got the function .* mapping by name",
    ),
    "example of a clocked network": (
        lambda: clocked(example=torch.zeros(2, 3)),
        r"the example: got a tensor of shape \(2, 3\), expected a mapping by name of node",
    ),
    # recurrent networks
    "no boundary": (
        lambda: Recurrent(Cell(), sg.SyntheticGradient(), over_time, adam),  # type: ignore[arg-type]
        "expected a Boundary",
    ),
    "initial state of one argument": (
        lambda: recurrent(OneArgument()),
        r"OneArgument has initial_state\(batch_size.*expected initial_state\(batch_size, device, dtype\)",
    ),
    "no initial state": (lambda: recurrent(NoState()), "has no method initial_state"),
    "decoupled network": (lambda: recurrent(cut()), "no method initial_state"),
    "no argument for the state": (lambda: recurrent(Stateless()), r"expected forward\(x, state\)"),
    "outputs only": (lambda: recurrent(OutputsOnly()).step(XS, YS), "expected a pair"),
    "state before outputs": (lambda: recurrent(Swapped()).step(XS, YS), r"parts of shape \(5, 6, 3\)"),
    "another batch": (
        lambda: unroll_twice(recurrent(), 3),
        r"has 3 sequences and the one before had 5.*fresh=True",
    ),
    "batch dimension": (
        lambda: recurrent(Layers(), (torch.zeros(1, 5, 8),) * 2),
        r"batch_dim=1 for the \(layers, B, H\)",
    ),
    "wrong batch dimension": (
        lambda: recurrent(Layers(), (torch.zeros(1, 5, 8),) * 2, batch_dim=0).step(XS, YS),
        r"has 1 along dimension 0, expected the 5 sequences.*batch_dim=1",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_told_in_one_sentence(slip: str) -> None:
    make, said = SLIPS[slip]
    with pytest.raises(SynthgradError, match=said) as caught:
        make()
    text = str(caught.value)
    assert "\n" not in text
    assert not text.endswith(".")
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert "synthgrad" in Path(last.filename).parts  # not from deep inside of PyTorch


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (lambda model, net: model.parameters(), "the parameters of the network have gradients"),
        (lambda model, net: net.model.parameters(), "the parameters of the rules have gradients"),
        (lambda model, net: net.parameters(), None),
    ],
    ids=["of the original", "of the network alone", "of both"],
)
def test_an_optimizer_of_other_parameters_is_warned_of(own: Any, said: str | None) -> None:
    plain = model()
    net = sg.decouple(plain, ["1"], sg.SyntheticGradient(context=3), X)
    optimizer = torch.optim.SGD(own(plain, net), 0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(256):
            F.cross_entropy(net(X, context=Y), Y).backward()
            optimizer.step()
    found = [str(warning.message) for warning in caught if "have gradients" in str(warning.message)]
    if said is None:
        assert not found
    else:
        assert any(said in text for text in found)
        assert all(r"make it of net.parameters()" in text for text in found)


def test_what_is_right_passes() -> None:
    in_process(update_prob=0.5, generator=torch.Generator(), lags={"1": Lag(0, 1)}).step(X, Y)
    assert set(cut(at=(name for name in ["1"])).interfaces) == {"1"}
    trainer = recurrent(Layers(), (torch.zeros(1, 5, 8),) * 2, batch_dim=1)
    unroll_twice(trainer, 5)
    trainer.step(XS[:3], YS[:3], fresh=True)
    unroll_twice(recurrent(), 5)


def test_a_model_that_fails_by_itself_keeps_its_error() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        cut(example=torch.randn(16, 5))
    assert "example batch" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        in_process().step(X[:, :3], Y)


def test_a_model_may_convert_what_it_is_given() -> None:
    class Converting(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x.float())

    net = sg.decouple(Converting(nn.Linear(4, 8), nn.Linear(8, 3)), ["0"], sg.NoBackprop(), X.double())
    InProcess(net, F.cross_entropy, adam).step(X.double(), Y)

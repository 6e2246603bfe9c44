from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import CutError, Decoupled
from tests.networks import CASES, CLASSES, Case, Residual, normed


def net_of(case: Case, rule: sg.Rule | None = None, **options: Any) -> Decoupled:
    rule = rule or sg.SyntheticGradient(context=CLASSES)
    return sg.decouple(case.model(), case.at, rule, case.batch()[0], **options)


def test_modules_of_a_chain() -> None:
    graph = net_of(CASES["batchnorm"]).graph
    assert graph.is_chain
    assert [m.name for m in graph.modules] == ["0", "1", "2", "output"]
    assert graph.modules[1].parameters == ("1.0.weight", "1.0.bias", "1.1.weight", "1.1.bias")
    assert graph.modules[3].inputs == ("2",)


def test_modules_of_two_heads() -> None:
    graph = net_of(CASES["two_headed"], sg.SyntheticGradient()).graph
    assert not graph.is_chain
    assert [(m.name, m.inputs) for m in graph.modules] == [
        ("trunk", ()),
        ("inner", ("trunk",)),
        ("output", ("trunk", "inner")),
    ]


def test_branches_over_an_uncut_trunk_are_one_module() -> None:
    graph = net_of(CASES["shared_trunk"]).graph
    assert [m.name for m in graph.modules] == ["left+right", "output"]
    assert "trunk.weight" in graph.modules[0].parameters


def test_in_place_module_above_a_cut_is_found() -> None:
    assert net_of(CASES["residual"]).graph.copies == {"join_two"}


def test_the_users_model_is_not_changed() -> None:
    model = normed().double()
    before = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    net = sg.decouple(model, ["0", "1"], sg.NoBackprop(), CASES["batchnorm"].batch()[0])
    assert torch.equal(torch.random.get_rng_state(), state)
    net(CASES["batchnorm"].batch()[0])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    assert all(
        torch.equal(v, before[k])
        for k, v in sg.decouple(model, ["0"], sg.NoBackprop(), CASES["batchnorm"].batch()[0])
        .model.state_dict()
        .items()
    )


def test_keys_of_the_state_dict() -> None:
    case = CASES["nested"]
    net = net_of(case)
    plain = case.model().state_dict()
    keys = set(net.state_dict())
    assert {f"model.{k}" for k in plain} <= keys
    rules = {k.split(".")[1] for k in keys if k.startswith("rules.")}
    assert rules == {"0_1", "0_3", "1"}


def test_every_cut_gets_a_fresh_rule() -> None:
    rule = sg.SyntheticGradient(context=CLASSES)
    net = net_of(CASES["batchnorm"], rule)
    bound = list(net.rules.values())
    assert len({id(r) for r in [rule, *bound]}) == 4
    assert not list(rule.parameters())


def test_a_rule_for_each_name() -> None:
    case = CASES["linear"]
    net = sg.decouple(
        case.model(), case.at, {"1": sg.NoBackprop(), "3": sg.SyntheticGradient()}, case.batch()[0]
    )
    assert isinstance(net.rules["1"], sg.NoBackprop)
    assert isinstance(net.rules["3"], sg.SyntheticGradient)


def test_eval_and_no_grad_are_the_plain_network() -> None:
    case = CASES["batchnorm"]
    x, _ = case.batch()
    model = case.model().eval()
    net = net_of(case).eval()
    output = net(x)  # needs no context
    assert torch.equal(output, model(x))
    with pytest.warns(UserWarning, match="in evaluation mode"):
        case.criterion(output, case.batch()[1]).backward()
    assert net.model[0][0].weight.grad.abs().max() > 0  # type: ignore[index,union-attr]
    net.train()
    with torch.no_grad():
        net(x)


def test_recouple_gives_the_plain_model_back() -> None:
    case = CASES["residual"]
    net = net_of(case)
    plain = sg.recouple(net)
    assert isinstance(plain, Residual)
    assert not any(m._forward_hooks for m in plain.modules())
    x, y = case.batch()
    case.criterion(plain(x), y).backward()
    assert plain.stem.weight.grad is not None
    assert plain.stem.weight.grad.abs().max() > 0
    assert len(net.model.get_submodule("stem")._forward_hooks) == 1
    with pytest.raises(CutError, match="expected what synthgrad.decouple returned"):
        sg.recouple(plain)  # type: ignore[arg-type]


def test_recouple_keeps_the_users_own_hooks() -> None:
    case = CASES["linear"]
    model = case.model()
    calls: list[str] = []
    model[1].register_forward_hook(lambda *a: calls.append("mine"))  # type: ignore[index]
    net = sg.decouple(model, ["1"], sg.NoBackprop(), case.batch()[0])
    calls.clear()
    sg.recouple(net)(case.batch()[0])
    assert calls == ["mine"]


def test_deepcopy_is_independent() -> None:
    case = CASES["batchnorm"]
    net = net_of(case)
    twin = copy.deepcopy(net)
    x, y = case.batch()
    for _ in range(2):
        optimizer = torch.optim.SGD(twin.parameters(), 0.1)
        F.cross_entropy(twin(x, context=y), y).backward()
        optimizer.step()
    assert not torch.equal(twin.rules["2"].model.weight, net.rules["2"].model.weight)  # type: ignore
    assert net.rules["2"].model.weight.abs().max() == 0  # type: ignore[union-attr]
    assert twin.interfaces["0"].rule is twin.rules["0"]


def test_state_dict_round_trip_through_a_file() -> None:
    case = CASES["batchnorm"]
    net, other = net_of(case), net_of(case)
    x, y = case.batch()
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(net(x, context=y), y).backward()
        optimizer.step()
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in net.state_dict().items())
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    whole = torch.load(buffer, weights_only=False)
    assert torch.equal(whole(x, context=y), net(x, context=y))


def test_context_block_and_keyword_agree() -> None:
    case = CASES["batchnorm"]
    net = net_of(case)
    x, y = case.batch()
    with sg.context(y):
        inside = net(x)
    assert torch.equal(inside, net(x, context=y))
    with pytest.raises(sg.core.ContextError, match=r"net\(x, context=y\)"):
        net(x)


def test_example_as_arguments_and_keywords() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
            return self.b(self.a(x) * scale)

    x, scale = torch.randn(5, 3), torch.ones(1)
    net = sg.decouple(Two(), ["a"], sg.NoBackprop(), {"x": x, "scale": scale})
    assert net(x, scale=scale).shape == (5, 2)


@pytest.mark.parametrize(
    ("at", "match"),
    [
        (["9"], "no submodule of that name"),
        ([], "no cut was given"),
        (["0", "0"], "given twice"),
        ("0", "expected a list"),
        (["3"], "output of the network"),
    ],
)
def test_names_that_cannot_be(at: Any, match: str) -> None:
    with pytest.raises(CutError, match=match):
        sg.decouple(normed(), at, sg.NoBackprop(), torch.randn(4, 6))


class Odd(nn.Module):
    """One module for every cut that cannot be made."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)
        self.pair = nn.LSTM(4, 4)
        self.whole = nn.Identity()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.aside = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(x))
        x, _ = self.pair(x)
        index = self.whole(x.argmax(1))
        self.aside(x)
        return self.head(x + self.inner(x)) + index.unsqueeze(1)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("twice", "runs more than once"),
        ("never", "never runs"),
        ("pair", "returns a tuple"),
        ("whole", "returns torch.int64"),
        ("inner.1", "skip connection crosses"),
        ("aside", "no gradient flows back"),
    ],
)
def test_cuts_that_cannot_be_made(name: str, match: str) -> None:
    with pytest.raises(CutError, match=match) as caught:
        sg.decouple(Odd(), [name], sg.NoBackprop(), torch.randn(5, 4))
    assert f"'{name}'" in str(caught.value)


def test_a_batch_of_one_meets_batchnorm() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel") as caught:
        sg.decouple(normed(), ["0"], sg.NoBackprop(), torch.randn(1, 6))
    assert any("example batch" in note for note in caught.value.__notes__)


def test_decoupling_twice_is_refused() -> None:
    net = net_of(CASES["linear"])
    with pytest.raises(CutError, match="decoupled already"):
        sg.decouple(net, ["model.1"], sg.NoBackprop(), CASES["linear"].batch()[0])


@pytest.mark.parametrize(
    ("case", "cuts"),
    [
        ("batchnorm", ["0", "1", "2"]),
        ("nested", ["0"]),
        ("residual", ["stem", "one"]),
        ("two_headed", ["trunk", "inner"]),
    ],
)
def test_proposed_cuts(case: str, cuts: list[str]) -> None:
    made = CASES[case]
    assert sg.propose_cuts(made.model(), made.batch()[0]) == cuts


def test_nothing_to_propose() -> None:
    with pytest.raises(CutError, match="name the cuts yourself"):
        sg.propose_cuts(nn.Linear(3, 2), torch.randn(4, 3))

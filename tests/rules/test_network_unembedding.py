"""A token head with the network's own unembedding: read as it is, not trained, not saved, and right in every copy."""

from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, CutError, Decoupled, Info, Rule, Site
from synthgrad.engines.stages.transport import run_in_memory
from synthgrad.rules import HeadGradient, LateCorrection, heads

B, T, D, V = 3, 4, 6, 9


def network(*, tied: bool = False, bias: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    scores = nn.Linear(D, V, bias=bias)
    parts = OrderedDict(
        embedding=nn.Embedding(V, D),
        low=nn.Sequential(nn.Linear(D, D), nn.Tanh()),
        high=nn.Sequential(nn.Linear(D, D), nn.Tanh()),
        output=nn.Sequential(OrderedDict(norm=nn.LayerNorm(D), scores=scores)),
    )
    if tied:
        scores.weight = parts["embedding"].weight  # type: ignore[assignment]
    return nn.Sequential(parts).double()


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))


def local(name: str = "output.scores", blocks: int = 0, classes: int = V) -> Rule:
    return sg.LocalLoss(classes, heads.token_head(blocks, unembedding=name))


def cut(rule: Rule | None = None, **options: Any) -> Decoupled[nn.Sequential]:
    return sg.decouple(network(**options), ["low"], rule or local(), tokens())


def message(net: Decoupled) -> Tensor:
    x = tokens()
    return net.model.low(net.model.embedding(x)).detach()


def head_of(net: Decoupled) -> Any:
    return net.interfaces["low"].rule.head


def delta(net: Decoupled, h: Tensor) -> Tensor:
    found = net.interfaces["low"].rule.credit(h, Info(context=tokens(1))).delta
    assert found is not None
    return found


def by_hand(net: Decoupled, h: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the gradient of the mean over tokens, by the head's own normalisation and a given unembedding."""
    leaf = h.clone().requires_grad_()
    scores = F.linear(head_of(net).layers[1](leaf), weight, bias)
    losses = F.cross_entropy(scores.transpose(1, 2), tokens(1), reduction="none").mean(1)
    return torch.autograd.grad(losses.sum(), leaf)[0]


@pytest.mark.parametrize("options", [{}, {"tied": True}, {"bias": True}], ids=["own", "tied", "bias"])
@pytest.mark.parametrize("name", ["output.scores", "embedding"])
def test_the_credit_is_that_of_the_networks_own_scores(name: str, options: dict[str, bool]) -> None:
    net = cut(local(name), **options)
    module = net.model.get_submodule(name)
    nn.init.normal_(module.weight)  # after the head was made: it is read when it is used
    h = message(net)
    bias = getattr(module, "bias", None)
    torch.testing.assert_close(delta(net, h), by_hand(net, h, module.weight, bias))
    outputs = head_of(net)(h)
    torch.testing.assert_close(outputs, F.linear(head_of(net).layers[1](h), module.weight, bias))


def test_the_head_neither_trains_nor_holds_it() -> None:
    net = cut(local(blocks=1))
    rule, scores = net.interfaces["low"].rule, net.model.output.scores
    h = message(net)
    credit = rule.credit(h, Info(context=tokens(1)))
    assert credit.loss is not None
    credit.loss.backward()
    head_of(net)(h).sum().backward()
    assert scores.weight.grad is None
    assert all(p.grad is not None for p in rule.parameters())
    assert scores.weight not in set(rule.parameters())
    assert not any("scores" in key or tuple(v.shape) == (V, D) for key, v in rule.state_dict().items())
    names = [name for name, _ in net.named_parameters(remove_duplicate=False)]
    assert names.count("model.output.scores.weight") == 1
    assert sum("scores" in name for name in names) == 1


def test_the_modules_own_loss_still_trains_it_in_both_engines() -> None:
    """The unembedding learns from the criterion alone, as with a head of its own."""
    ends = []
    for engine in (sg.engines.Locked, sg.engines.InProcess):
        net = cut()
        trainer = engine(net, lambda out, y: F.cross_entropy(out.transpose(1, 2), y), sgd)
        for k in range(3):
            trainer.step(tokens(k), tokens(k + 1))
        ends.append(net.state_dict())
    start = cut().state_dict()
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], msg=name)
    assert not torch.equal(ends[0]["model.output.scores.weight"], start["model.output.scores.weight"])


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def from_file(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, from_file, lambda net: pickle.loads(pickle.dumps(net))],
    ids=["copy", "file", "pickle"],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_copy_reads_the_unembedding_of_the_copy(again: Callable[[Any], Any], wrapped: bool) -> None:
    rule: Rule = LateCorrection(local()) if wrapped else local()
    net = cut(rule)
    twin = again(net)
    h = message(net)
    assert torch.equal(delta(net, h) if not wrapped else _inner(net, h), _inner(twin, h))
    before = _inner(net, h)
    nn.init.normal_(twin.model.output.scores.weight)
    assert torch.equal(_inner(net, h), before)
    assert not torch.equal(_inner(twin, h), before)
    assert sum(p.numel() for p in twin.parameters()) == sum(p.numel() for p in net.parameters())


def _inner(net: Decoupled, h: Tensor) -> Tensor:
    rule: Any = net.interfaces["low"].rule
    found = getattr(rule, "rule", rule).credit(h, Info(context=tokens(1))).delta
    assert found is not None
    return found


def test_it_follows_the_network_to_another_type_and_to_weights_that_are_loaded() -> None:
    net, other = cut(), cut()
    nn.init.normal_(other.model.output.scores.weight)
    h = message(other)
    for assign in (False, True):
        twin = copy.deepcopy(net)
        twin.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
        assert torch.equal(delta(twin, h), delta(other, h))
    half = copy.deepcopy(other).float()
    torch.testing.assert_close(delta(half, h.float()), delta(other, h).float(), rtol=1e-4, atol=1e-6)
    assert delta(half, h.float()).dtype == torch.float32


def test_a_plain_model_comes_back_without_it() -> None:
    net = cut()
    plain = sg.recouple(net)
    assert plain.state_dict().keys() == network().state_dict().keys()
    x = tokens()
    assert torch.equal(plain(x), net.eval()(x))


def test_a_rule_says_that_it_reads_the_network_and_so_do_those_around_it() -> None:
    for rule in (
        local(),
        LateCorrection(local()),
        sg.HandOver(local(), warm_up=1),
        HeadGradient(V, heads.token_head(0, unembedding="embedding")),
    ):
        assert cut(rule).interfaces["low"].rule.needs_network  # type: ignore[union-attr]
    assert not cut(sg.LocalLoss(V, heads.token_head(0))).interfaces["low"].rule.needs_network  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            lambda: local("output.score"),
            "no module of that name.*'output.scores'.*with a weight \\(9, 6\\) it has embedding, output.scores",
        ),
        (
            lambda: local("low.1"),
            "is a Tanh with no weight, expected a Linear or an Embedding with a weight \\(9, 6\\)",
        ),
        (lambda: local("output.norm"), "is a LayerNorm with a weight of shape \\(6,\\)"),
        (
            lambda: local(classes=V + 1),
            "a weight of shape \\(9, 6\\), expected a Linear or an Embedding with a weight \\(10, 6\\)",
        ),
        (
            lambda: sg.Sobolev(V, head=heads.token_head(0, unembedding="embedding")),
            "a critic learns its last layer",
        ),
    ],
    ids=["unknown", "no weight", "a vector", "another vocabulary", "a critic"],
)
def test_what_is_no_unembedding_is_told(rule: Callable[[], Rule], said: str) -> None:
    with pytest.raises(CutError, match=f"interface 'low': .*{said}"):
        cut(rule())


def test_names_that_are_none_are_told() -> None:
    for wrong in ("", 3, nn.Linear(D, V)):
        with pytest.raises(ConfigError, match="unembedding=.*: expected the name of a module of the network"):
            heads.token_head(unembedding=wrong)  # type: ignore[arg-type]


def test_where_no_network_is_shown_it_is_refused() -> None:
    site = Site("here", (B, T, D), torch.float64, torch.device("cpu"), nn.Identity())
    with pytest.raises(CutError, match="which this engine does not show its rules"):
        local().bind(site)


def _stage(transport: Any) -> None:
    criterion = lambda out, y: F.cross_entropy(out.transpose(1, 2), y)  # noqa: E731
    with sg.engines.Stages(cut(), criterion, sgd, window=0, timeout_s=60, transport=transport):
        pass


def test_engines_in_which_other_weights_train_refuse_it() -> None:
    said = r"interface 'low': its rule LocalLoss reads weights of the network .*use synthgrad\.engines\.InProcess"
    with pytest.raises(ConfigError, match=said):
        run_in_memory(2, _stage)
    with pytest.raises(ConfigError, match=said):
        sg.engines.LayerParallel(cut(), lambda out, y: F.cross_entropy(out.transpose(1, 2), y), sgd)

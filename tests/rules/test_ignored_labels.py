"""Examples without a label: the index that PyTorch's losses ignore is no class to any rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ContextError, Info, Message, Site
from synthgrad.rules import LeastSquaresGradient, context_input, models

CLASSES = 4
RULES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "dense": (lambda i: sg.SyntheticGradient(context=CLASSES, ignore_index=i), (6,)),
    "dense, table": (
        lambda i: sg.SyntheticGradient(context=CLASSES, ignore_index=i, learned_table=True),
        (6,),
    ),
    "dense, hidden": (
        lambda i: sg.SyntheticGradient((5,), context=CLASSES, norm=False, ignore_index=i),
        (6,),
    ),
    "tokens": (lambda i: sg.SyntheticGradient(context=CLASSES, ignore_index=i), (3, 6)),
    "masks": (lambda i: sg.SyntheticGradient(context=CLASSES, ignore_index=i), (2, 5, 5)),
    "maps": (lambda i: sg.SyntheticGradient(context=CLASSES, maps=True, ignore_index=i), (2, 5, 5)),
    "local loss": (lambda i: sg.LocalLoss(CLASSES, ignore_index=i), (6,)),
    "critic": (lambda i: sg.Sobolev(CLASSES, ignore_index=i), (6,)),
    "critic of the value": (lambda i: sg.Sobolev(CLASSES, critic="value", ignore_index=i), (6,)),
}
every_rule = pytest.mark.parametrize("name", RULES)
LABELS = torch.tensor([0, -100, 3, -100, 1])


@pytest.fixture(params=["looked up", "masked"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """On a CPU a look-up fails and is repeated; on an accelerator, and in a graph, it is masked from the start."""
    if request.param == "masked":
        monkeypatch.setattr(context_input, "_tells_by_itself", lambda *args: False)
    return request.param


def bound(name: str, ignore: int = -100) -> Any:
    make, shape = RULES[name]
    rule = make(ignore).bind(Site("cut", (5, *shape), torch.float64, torch.device("cpu"), nn.Identity()))
    generator = torch.Generator().manual_seed(0)
    for p in (*rule.parameters(), *rule.buffers()):
        if p.is_floating_point():
            nn.init.normal_(p, generator=generator)
    return rule


def drawn(name: str, seed: int = 0) -> Tensor:
    shape = (5, *RULES[name][1])
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def one_hot(labels: Tensor) -> Tensor:
    """Rows of zeros where there is no label."""
    rows = F.one_hot(labels.clamp_min(0), CLASSES).double()
    return rows * (labels >= 0).unsqueeze(-1)


@every_rule
def test_an_example_without_a_label_has_the_context_zero(name: str, form: str) -> None:
    rule, h = bound(name), drawn(name)
    rule.check(h, Info(context=LABELS))
    credit = rule.credit(h, Info(context=LABELS))
    if isinstance(rule, sg.SyntheticGradient):
        assert torch.equal(credit.delta, rule.credit(h, Info(context=one_hot(LABELS))).delta)
        return
    ignored = LABELS == -100
    assert credit.delta[ignored].abs().max() == 0
    assert (credit.delta[~ignored].abs().amax(1) > 1e-3).all()
    alone = bound(name).credit(h[~ignored], Info(context=LABELS[~ignored]))
    torch.testing.assert_close(credit.delta[~ignored], alone.delta)
    if credit.loss is not None:  # a mean over all examples of the batch
        torch.testing.assert_close(credit.loss * 5, alone.loss * 3)
    if credit.value is not None:
        assert credit.value[ignored].abs().max() == 0


@every_rule
def test_labels_that_are_all_there_are_looked_up_as_ever(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    h, c = drawn(name), torch.tensor([0, 1, 3, 2, 2])
    plain = bound(name).credit(h, Info(context=c)).delta
    monkeypatch.setattr(context_input, "_tells_by_itself", lambda *args: False)
    assert torch.equal(plain, bound(name).credit(h, Info(context=c)).delta)


@every_rule
def test_the_index_may_be_a_class_that_is_not_to_count(name: str) -> None:
    h, c = drawn(name), torch.tensor([0, 1, 3, 2, 0])
    same = torch.where(c == 0, -100, c)
    torch.testing.assert_close(
        bound(name, ignore=0).credit(h, Info(context=c)).delta,
        bound(name).credit(h, Info(context=same)).delta,
    )


@every_rule
@pytest.mark.parametrize("wrong", [CLASSES, -1, -101])
def test_other_indices_out_of_range_are_told(name: str, form: str, wrong: int) -> None:
    rule, h = bound(name), drawn(name)
    with pytest.raises(ContextError, match=f"interface 'cut': got class index {wrong}, expected 0 to 3"):
        rule.credit(h, Info(context=torch.tensor([0, -100, wrong, 1, 1])))


def test_nothing_is_learned_for_a_class_from_examples_without_a_label(form: str) -> None:
    rule, h = bound("dense, table"), drawn("dense")
    rule.observe(h, Info(context=LABELS), Message(drawn("dense", 1))).backward()
    grad = rule.model.table.grad
    assert grad[2].abs().max() == 0
    assert all(grad[k].abs().max() > 0 for k in (0, 1, 3))
    error = (rule.predict(h, Info(context=LABELS)) - drawn("dense", 1)).detach()
    torch.testing.assert_close(grad, 2 / 5 * one_hot(LABELS).t() @ error)


def test_tokens_without_a_label(form: str) -> None:
    rule, h = bound("tokens"), drawn("tokens")
    c = torch.tensor([[0, -100, 2], [3, 3, -100], [1, 1, 1], [-100, -100, -100], [2, 0, 1]])
    rule.check(h, Info(context=c))
    rows = one_hot(c)
    torch.testing.assert_close(
        rule.credit(h, Info(context=c)).delta, rule.credit(h, Info(context=rows)).delta
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_indices_of_other_types_are_indices(dtype: torch.dtype) -> None:
    for name in RULES:
        h, c = drawn(name), torch.tensor([0, 1, 3, 2, 2])
        deltas = [bound(name).credit(h, Info(context=labels)).delta for labels in (c, c.to(dtype))]
        assert torch.equal(*deltas), name


def test_least_squares_give_and_learn_nothing_there() -> None:
    def rule() -> LeastSquaresGradient:
        site = Site("cut", (5, 6), torch.float64, torch.device("cpu"), nn.Identity())
        return LeastSquaresGradient(CLASSES).bind(site)

    h, message = drawn("dense"), drawn("dense", 1)
    kept = LABELS != -100
    whole, part = rule(), rule()
    whole.observe(h, Info(context=LABELS), Message(message))
    part.observe(h[kept], Info(context=LABELS[kept]), Message(message[kept]))
    torch.testing.assert_close(whole.weight, part.weight)
    delta = whole.credit(h, Info(context=LABELS)).delta
    assert delta is not None
    assert delta[~kept].abs().max() == 0
    torch.testing.assert_close(delta[kept], part.credit(h[kept], Info(context=LABELS[kept])).delta)
    nothing = torch.full((5,), -100)
    assert whole.credit(h, Info(context=nothing)).delta.abs().max() == 0  # type: ignore[union-attr]
    whole.observe(h, Info(context=nothing), Message(message))
    torch.testing.assert_close(whole.weight, part.weight)
    with pytest.raises(ContextError, match="class index 4, expected 0 to 3"):
        whole.credit(h, Info(context=torch.tensor([0, -100, 4, 1, 1])))


@pytest.mark.parametrize("engine", [sg.engines.Locked, sg.engines.InProcess])
def test_a_run_with_labels_left_out_learns_as_one_without_them_does(engine: Any) -> None:
    """With the criterion's own ignore_index. (The rule's loss is a mean, and differs by the number of examples.)"""
    x = torch.randn(10, 6, dtype=torch.float64)
    y = torch.tensor([0, -100, 3, -100, 1, 2, 2, -100, 0, -100])
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()
    states = []
    for rows in (torch.arange(10), (y != -100).nonzero().squeeze(1)):
        torch.manual_seed(1)
        net = sg.decouple(model, ["1"], sg.LocalLoss(CLASSES), x, reduction="sum")

        def criterion(output: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(output, target, reduction="sum")

        engine(net, criterion, lambda p: torch.optim.SGD(p, 0.1)).step(x[rows], y[rows])
        states.append({k: v for k, v in net.state_dict().items() if k.startswith("model.")})
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name])


def test_models_know_the_index_of_their_rule() -> None:
    made = sg.SyntheticGradient(context=CLASSES, model=models.like_layer(), ignore_index=7)
    site = Site("cut", (5, 6), torch.float64, torch.device("cpu"), nn.Identity())
    assert made.bind(site).model.ignore_index == 7

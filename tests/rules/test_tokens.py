"""Every rule with messages (B, T, D), targets (B, T), ragged masks: right by its definition, or refused with a remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthgrad as sg
from synthgrad.core import ConfigError, ContextError, CutError, Info, Message, Rule, ShapeError, Site
from synthgrad.rules import (
    FutureGradient,
    HeadGradient,
    LateCorrection,
    LeastSquaresGradient,
    StaleGradient,
    heads,
    models,
)

B, T, D, V = 4, 5, 3, 6
IGNORED = -100


class Causal(nn.Module):
    """A private block: each position sees itself and those before."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x.cumsum(1)).tanh()


def head(blocks: int = 0) -> Any:
    return heads.token_head(blocks, block=lambda site: Causal())


RULES: dict[str, Callable[[], Rule]] = {
    "dni": lambda: sg.SyntheticGradient(),
    "cdni": lambda: sg.SyntheticGradient(context=V),
    "cdni, table": lambda: sg.SyntheticGradient(context=V, learned_table=True),
    "cdni, hidden": lambda: sg.SyntheticGradient((4,), V),
    "least squares": lambda: LeastSquaresGradient(V, per_token=True),
    "least squares, one matrix": lambda: LeastSquaresGradient(per_token=True),
    "least squares, whole": lambda: LeastSquaresGradient(),
    "local loss": lambda: sg.LocalLoss(V, head()),
    "local loss, block": lambda: sg.LocalLoss(V, head(1)),
    "critic": lambda: sg.Sobolev(V, head=head(1)),
    "head gradient": lambda: HeadGradient(V, head(1), every=1),
    "interlocked": lambda: sg.rules.InterlockedLoss(V, head()),
    "stale": lambda: StaleGradient(10),
    "hand over": lambda: sg.HandOver(sg.SyntheticGradient(context=V), warm_up=1, min_cosine=0.1),
    "hand over, local": lambda: sg.HandOver(sg.LocalLoss(V, head()), min_cosine=0.1),
    "late correction": lambda: LateCorrection(sg.LocalLoss(V, head())),
}
#: Those that see no label, and so give a credit to an example that has none.
BLIND = ("dni", "least squares, one matrix", "least squares, whole")
every_rule = pytest.mark.parametrize("name", RULES)


def site(shape: tuple[int, ...] = (B, T, D), **more: Any) -> Site:
    return Site("cut", shape, torch.float64, torch.device("cpu"), Causal(), **more)


def bound(rule: Rule, **more: Any) -> Any:
    torch.manual_seed(0)
    made = rule.bind(site(**more))
    for p in made.parameters():
        nn.init.normal_(p)
    return made


def drawn(*shape: int, seed: int = 0) -> Tensor:
    shape = shape or (B, T, D)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ragged() -> Tensor:
    """Return targets: all, the first three, the last two, none."""
    y = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(2))
    y[1, 3:] = y[2, :3] = y[3] = IGNORED
    return y


def about(y: Tensor) -> Info:
    return Info(context=y, ids=torch.arange(len(y)), step=0)


def true_message(y: Tensor) -> Message:
    """Return a message as the criterion sends it: nothing for an example without a label."""
    gradient = drawn(seed=3) * (y != IGNORED).any(1).view(-1, 1, 1)
    return Message(gradient, torch.rand(len(y), dtype=torch.float64) * (y != IGNORED).any(1))


@every_rule
def test_an_example_without_any_label_has_no_credit_and_changes_nothing_for_others(name: str) -> None:
    h, y = drawn(), ragged()
    credits = []
    for rows in (slice(0, 4), slice(0, 3)):
        rule = bound(RULES[name]())
        rule.eval()  # BatchNorm would see other rows
        info = about(y[rows])
        message = true_message(y)
        rule.check(h[rows], info)
        for _ in range(2):
            credit = rule.credit(h[rows], info)
            learned = Message(message.gradient[rows], message.loss[rows])  # type: ignore[index]
            loss = rule.observe(h[rows], info, learned, credit.pending)
            if loss is not None:
                loss.backward()
        credits.append(rule.credit(h[rows], info).delta)
        assert credits[-1].isfinite().all()
    whole, part = credits
    if name in BLIND:
        assert (whole[3] != 0).any()
        return
    assert not whole[3].any()
    torch.testing.assert_close(whole[:3], part)
    assert (whole[:3].flatten(1) != 0).any(1).all()


@every_rule
def test_messages_of_single_examples_do_not_depend_on_the_batch(name: str) -> None:
    h, y = drawn(), ragged()
    rule = bound(RULES[name]()).eval()
    both = rule.credit(torch.cat([h, h]), Info(torch.cat([y, y]), torch.arange(B).repeat(2), 0)).delta
    alone = rule.credit(h, about(y)).delta
    torch.testing.assert_close(both[:B], alone)


def mask_of(name: str) -> Tensor:
    """Return where there is credit, ``(B, T)``, by the docstrings."""
    y = ragged()
    own = y != IGNORED
    any_label = own.any(1, keepdim=True)
    later = own.flip(1).cummax(1).values.flip(1)  # this position, or one after it, has a label
    return {
        "cdni": any_label.expand(B, T),
        "cdni, table": any_label.expand(B, T),  # where there is no label, the context is zero
        "cdni, hidden": any_label.expand(B, T),
        "least squares": own,
        "local loss": own,
        "interlocked": own,
        "late correction": own,
        "hand over, local": own,
        "local loss, block": later,
        "critic": later,
        "head gradient": later,
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "cdni",
        "cdni, table",
        "cdni, hidden",
        "least squares",
        "local loss",
        "interlocked",
        "late correction",
        "hand over, local",
    ]
    + ["local loss, block", "critic", "head gradient"],
)
def test_masked_positions_have_the_credit_that_the_docstring_says(name: str) -> None:
    h, y = drawn(), ragged()
    rule = bound(RULES[name]()).eval()
    rule.observe(h, about(y), true_message(y))
    delta = rule.credit(h, about(y)).delta
    assert torch.equal((delta != 0).any(-1), mask_of(name))


def one_hot(y: Tensor) -> Tensor:
    return nn.functional.one_hot(y.clamp_min(0), V).double() * (y >= 0).unsqueeze(-1)


def test_a_linear_synthetic_gradient_by_place_is_its_formula_with_no_label_as_zero() -> None:
    rule, h, y = bound(RULES["cdni, table"]()), drawn(), ragged()
    weight, table = rule.model.first.weight, rule.model.table
    expected = h @ weight.t() + one_hot(y) @ table
    expected[3] = 0
    torch.testing.assert_close(rule.credit(h, about(y)).delta, expected)
    message = true_message(y)
    rule.observe(h, about(y), message).backward()
    error = (expected - message.gradient).detach() * 2 / B
    torch.testing.assert_close(weight.grad, torch.einsum("btd,bte->de", error, h))
    torch.testing.assert_close(table.grad, torch.einsum("btv,btd->vd", one_hot(y), error))
    same = rule.credit(h, Info(context=one_hot(y))).delta
    torch.testing.assert_close(same, expected)  # the same context as features


def solved(x: Tensor, d: Tensor, damping: float) -> Tensor:
    """Return ridge regression by its definition."""
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    ridge = damping * x.square().sum(1).mean() * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(x.t() @ x + ridge, x.t() @ d)


@pytest.mark.parametrize("num_rows", [1, B])
def test_least_squares_take_tokens_as_rows(num_rows: int) -> None:
    """More rows than features, or fewer: the solution is the same ridge regression; the matrices are (D + 1, D)."""
    h, d = drawn()[:num_rows, :2], drawn(seed=3)[:num_rows, :2]
    rule = bound(LeastSquaresGradient(per_token=True, rate=1.0, damping=0.2))
    assert rule.weight.shape == (1, D + 1, D)
    rule.observe(h, Info(), Message(d))
    torch.testing.assert_close(rule.weight[0], solved(h.flatten(0, 1), d.flatten(0, 1), 0.2))


def test_the_system_of_least_squares_by_place_is_no_larger_than_the_features(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    solve = torch.linalg.solve_ex

    def noted(a: Tensor, b: Tensor) -> Any:
        sizes.append(len(a))
        return solve(a, b)

    monkeypatch.setattr(torch.linalg, "solve_ex", noted)
    rule = bound(LeastSquaresGradient(per_token=True))
    rule.observe(drawn(), Info(), Message(drawn(seed=3)))
    rule.observe(drawn()[:1, :2], Info(), Message(drawn(seed=3)[:1, :2]))
    assert sizes == [D + 1, 2]


def test_least_squares_have_a_matrix_for_each_token_and_none_where_there_is_no_label() -> None:
    h, y, d = drawn(), ragged(), drawn(seed=3)
    rule = bound(LeastSquaresGradient(V, per_token=True, rate=1.0, damping=0.2))
    rule.observe(h, about(y), Message(d))
    for v in range(V):
        own = y == v
        if own.any():
            torch.testing.assert_close(rule.weight[v], solved(h[own], d[own], 0.2))
        else:
            assert not rule.weight[v].any()
    delta = rule.credit(h, about(y)).delta
    expected = (
        torch.cat([h, torch.ones(B, T, 1, dtype=h.dtype)], -1).unsqueeze(-2) @ rule.weight[y.clamp_min(0)]
    )
    torch.testing.assert_close(delta, expected.squeeze(-2) * (y != IGNORED).unsqueeze(-1))


def test_least_squares_by_place_find_the_features_of_images() -> None:
    h, d = drawn(2, D, 4, 5), drawn(2, D, 4, 5, seed=3)
    y = torch.randint(0, 2, (2, 4, 5))
    rule: Any = LeastSquaresGradient(2, per_token=True, rate=1.0, damping=0.2).bind(site((2, D, 4, 5)))
    rule.check(h, Info(context=y))
    rule.observe(h, Info(context=y), Message(d))
    rows = [v.movedim(1, -1)[y == 1] for v in (h, d)]
    torch.testing.assert_close(rule.weight[1], solved(*rows, 0.2))
    delta = rule.credit(h, Info(context=y)).delta
    x = torch.cat([rows[0], torch.ones(len(rows[0]), 1, dtype=h.dtype)], 1)
    torch.testing.assert_close(delta.movedim(1, -1)[y == 1], x @ rule.weight[1])


def test_the_future_gradient_counts_the_steps_of_each_sequence_alike() -> None:
    rule = FutureGradient(D, 4, weight=0.5).double()
    nn.init.normal_(rule.model[0].weight)
    features, delta = drawn(), drawn(B, 4, seed=3)
    mask = ragged() != IGNORED
    squares = (rule.model(features) - delta.unsqueeze(1)).square().sum(-1)  # (B, T)
    expected = 0.5 * sum(squares[b][mask[b]].mean() for b in range(3)) / B  # the last sequence has no step
    torch.testing.assert_close(rule.loss(features, delta, mask), expected)
    torch.testing.assert_close(rule.loss(features, delta, mask | True), rule.loss(features, delta))
    for wrong in (mask[:, 1:], mask.long()):
        with pytest.raises(ShapeError, match=r"expected \(4, 5\) bool: True where a step"):
            rule.loss(features, delta, wrong)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (sg.LocalLoss(V), "for a target at each position give the rule head=heads.token_head()"),
        (sg.Sobolev(V), "for a target at each position give the rule head=heads.token_head()"),
        (HeadGradient(V), "for a target at each position give the rule head=heads.token_head()"),
        (
            sg.Sobolev(V, critic="value"),
            "one for each example and not for each place; a rule that takes (4, 5)",
        ),
        (sg.SyntheticGradient(context=V, model=models.convolutional()), "model=models.dense()"),
        (LeastSquaresGradient(V), "for one at each place give the rule per_token=True"),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, Rule) else "",
)
def test_rules_of_examples_say_what_takes_tokens(rule: Rule, said: str) -> None:
    with pytest.raises(ContextError, match=f"interface 'cut': .*{re.escape(said)}"):
        bound(rule).check(drawn(), about(ragged()))


@every_rule
def test_targets_of_another_length_are_told(name: str) -> None:
    if name in (*BLIND, "stale"):
        return
    with pytest.raises(
        ContextError, match=r"interface 'cut': got (labels|a context) of shape \(4, 4\).*\(4, 5\)"
    ):
        bound(RULES[name]()).check(drawn(), about(ragged()[:, 1:]))


@every_rule
def test_tokens_outside_the_vocabulary_are_told(name: str) -> None:
    if name in (*BLIND, "stale"):
        return
    y = ragged()
    y[0, 1] = V
    with pytest.raises(ContextError, match=f"interface 'cut': got class index {V}, expected 0 to {V - 1}"):
        bound(RULES[name]()).credit(drawn(), about(y))


def test_shorter_sequences_than_those_remembered_are_told() -> None:
    with pytest.raises(
        ShapeError, match=r"got a message of shape \(4, 4, 3\), and what is remembered .* has \(5, 3\)"
    ):
        bound(StaleGradient(10)).check(drawn()[:, 1:], about(ragged()))


def test_a_critic_of_the_value_has_no_token_head() -> None:
    with pytest.raises(CutError, match="critic='value' gives an example one value.*take critic='classifier'"):
        bound(sg.Sobolev(V, critic="value", head=head()))


@every_rule
def test_the_engine_trains_a_language_model_with_ragged_targets(name: str) -> None:
    """With `reduction="tokens"`, where the criterion is the mean over all labels of the batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(V, D), Causal(), Causal(), nn.Linear(D, V)).double()
    x, y = torch.randint(0, V, (B, T)), ragged()

    def criterion(out: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(out.transpose(1, 2), y)

    net = sg.decouple(model, ["1"], RULES[name](), x, reduction="tokens")
    trainer = sg.engines.InProcess(net, criterion, lambda p: torch.optim.Adam(p, 1e-2))
    losses = [trainer.step(x, y, ids=torch.arange(B)).loss for _ in range(30)]
    assert losses[-1] < losses[0]  # type: ignore[operator]
    assert all(p.isfinite().all() for p in net.parameters())


def test_a_mask_for_one_example_is_none() -> None:
    """Class indices of examples are no places: the context is zero, and there is credit, as there was."""
    rule = sg.SyntheticGradient(context=V).bind(site((B, D)))
    for p in rule.parameters():
        nn.init.normal_(p)
    delta = rule.credit(drawn(B, D), Info(context=torch.tensor([0, 1, IGNORED, 2]))).delta
    assert delta is not None
    assert delta[2].any()


def test_wrong_settings_are_told() -> None:
    with pytest.raises(ConfigError, match="rate=2"):
        LeastSquaresGradient(per_token=True, rate=2)

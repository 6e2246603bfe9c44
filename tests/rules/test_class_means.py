"""Linear ``M`` with a running mean for each class: its formula, how it learns, and that it learns where a table does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, Info, Message, Rule, Site
from synthgrad.rules import models
from synthgrad.rules.models import ClassMeansModel, DenseModel

B, H, CLASSES = 64, 6, 3
LABELS = torch.tensor([0] * 40 + [1] * 23 + [2])  # one row in 64, where the mean counts in full from two on


def bound(
    shape: tuple[int, ...] = (B, H), at: int | None = None, *, random: bool = False, **options: Any
) -> Any:
    site = Site("cut", shape, torch.float64, torch.device("cpu"), nn.Identity())
    rule = sg.SyntheticGradient(context=CLASSES, **options).bind(site)
    if random:
        nn.init.normal_(rule.model.weight, generator=torch.Generator().manual_seed(5))
        nn.init.normal_(rule.model.table, generator=torch.Generator().manual_seed(6))
    return rule


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or (B, H), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def observed(rule: Any, h: Tensor, c: Tensor, message: Tensor) -> Tensor:
    """Let a rule learn by the way of engines: credit, then the gradient of what is pending. Return that of ``W``."""
    credit = rule.credit(h, Info(context=c))
    (grad,) = rule.observe_grad(h, Info(context=c), Message(message), credit.pending)
    (found,) = torch.autograd.grad(credit.pending[0], [rule.model.weight], grad)
    return found


def test_it_is_the_default_of_a_linear_model_with_a_context_on_features() -> None:
    assert isinstance(bound().model, ClassMeansModel)
    assert isinstance(bound((B, 4, H)).model, ClassMeansModel)
    assert isinstance(bound(learned_table=True).model, DenseModel)
    assert isinstance(bound(model=models.dense()).model, DenseModel)
    assert isinstance(bound(hidden=(4,)).model, DenseModel)
    site = Site("cut", (B, H), torch.float64, torch.device("cpu"), nn.Identity())
    assert isinstance(sg.SyntheticGradient().bind(site).model, DenseModel)
    assert not isinstance(bound((B, H, 4, 4)).model, ClassMeansModel)


def test_the_first_synthetic_gradients_are_zero_and_the_second_are_means() -> None:
    rule, message = bound(), drawn(seed=1)
    assert not rule.credit(drawn(), Info(context=LABELS)).delta.any()
    observed(rule, drawn(), LABELS, message)
    means = torch.stack([message[:40].mean(0), message[40:63].mean(0), message[63] / 2])
    torch.testing.assert_close(rule.model.table, means)
    torch.testing.assert_close(rule.credit(drawn(seed=2), Info(context=LABELS)).delta, means[LABELS])


def test_the_formula() -> None:
    rule = bound(random=True)
    expected = 3 * drawn() @ rule.model.weight.t() / H**0.5 + rule.model.table[LABELS]
    torch.testing.assert_close(rule.credit(drawn(), Info(context=LABELS)).delta, expected)
    other = bound(random=True, model=models.class_means(gain=0.5))
    expected = 0.5 * drawn() @ other.model.weight.t() / H**0.5 + other.model.table[LABELS]
    torch.testing.assert_close(other.credit(drawn(), Info(context=LABELS)).delta, expected)


def test_the_formula_of_a_low_rank_and_of_a_diagonal() -> None:
    torch.manual_seed(0)
    low = bound(random=True, model=models.class_means(rank=2)).model
    assert (low.weight.shape, low.down.shape) == ((H, 2), (2, H))
    expected = 3 * H**0.5 / 2 * drawn() @ (low.weight @ low.down).t() + low.table[LABELS]
    torch.testing.assert_close(low(drawn(), LABELS), expected)
    assert not bound(model=models.class_means(rank=2)).model.weight.any()  # so that the first credit is zero
    diagonal = bound(random=True, model=models.class_means(rank=0)).model
    expected = 3 * drawn() * diagonal.weight / H**0.5 + diagonal.table[LABELS]
    torch.testing.assert_close(diagonal(drawn(), LABELS), expected)
    assert sum(p.numel() for p in diagonal.parameters()) == H
    for rank, words in ((2, "rank=2"), (0, "diagonal"), (None, "gain=3)")):
        assert words in str(bound(model=models.class_means(rank=rank)).model)


@pytest.mark.parametrize("shape", [(B, 4, H), (B, H)])
def test_a_low_rank_learns_what_a_low_rank_can_say(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    truth = torch.outer(drawn(H), drawn(H, seed=1))
    labels = LABELS if len(shape) == 2 else LABELS.unsqueeze(1).expand(B, 4)
    left = {}
    for rank in (1, 0):
        rule = bound(shape, model=models.class_means(rank=rank))
        optimizer = torch.optim.Adam(rule.parameters(), 0.02)
        for step in range(400):
            h = drawn(*shape, seed=step)
            credit = rule.credit(h, Info(context=labels))
            loss = (credit.pending[0] - h @ truth).square().mean()
            grads = torch.autograd.grad(loss, list(rule.parameters()))
            for p, grad in zip(rule.parameters(), grads, strict=True):
                p.grad = grad
            optimizer.step()
        left[rank] = float(loss.detach()) / float((h @ truth).square().mean())
    assert left[1] < 1e-3
    assert left[0] > 0.3  # a diagonal cannot


@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_means_move_first_and_the_weight_learns_from_what_is_left(rate: float) -> None:
    rule, h, message = bound(random=True, model=models.class_means(rate=rate)), drawn(), drawn(seed=1)
    twin, before = copy.deepcopy(rule), rule.model.table.clone()
    error = rule.predict(h, Info(context=LABELS)).detach() - message
    moved = torch.stack([error[:40].mean(0), error[40:63].mean(0), error[63] / 2]) * rate
    grad = observed(rule, h, LABELS, message)
    torch.testing.assert_close(rule.model.table, before - moved)
    left = error - moved[LABELS]
    torch.testing.assert_close(grad, 2 / B * rule.model.scale * left.t() @ h)
    loss = twin.observe(h, Info(context=LABELS), Message(message))
    torch.testing.assert_close(loss, left.square().sum() / B)
    loss.backward()
    torch.testing.assert_close(twin.model.weight.grad, grad)
    assert torch.equal(twin.model.table, rule.model.table)


def test_messages_that_come_together_are_not_taken_for_one_error_several_times() -> None:
    """Microbatches get credit before the first of them is observed: the means at that time are outdated then."""
    rule, h, message = bound(), drawn(), drawn(seed=1)
    credits = [rule.credit(h, Info(context=LABELS)) for _ in range(3)]
    for credit in credits:
        rule.observe_grad(h, Info(context=LABELS), Message(message), credit.pending)
    once = bound()
    observed(once, h, LABELS, message)
    torch.testing.assert_close(
        rule.model.table[:2], once.model.table[:2]
    )  # of the classes that count in full


def test_features_are_like_indices_and_do_not_overshoot() -> None:
    h, message = drawn(), drawn(seed=1)
    ignored = torch.where(LABELS == 2, -100, LABELS)
    rows = F.one_hot(ignored.clamp_min(0), CLASSES) * (ignored >= 0).unsqueeze(1)
    rules = bound(random=True), bound(random=True)
    for rule, c in zip(rules, (ignored, rows.double()), strict=True):
        observed(rule, h, c, message)
    torch.testing.assert_close(rules[0].model.table, rules[1].model.table)
    alike = bound()
    c = torch.full(
        (20, CLASSES), 7.0, dtype=torch.float64
    )  # the same feature three times: one error, not three
    wanted = message[:1].expand(20, H)
    alike.observe(drawn(20, H), Info(context=c), Message(wanted))
    torch.testing.assert_close(alike.predict(drawn(20, H), Info(context=c)).detach(), wanted)


def test_what_has_no_label_or_is_frozen_moves_nothing() -> None:
    rule = bound(random=True)
    before = rule.model.table.clone()
    observed(rule, drawn(), torch.full((B,), -100), drawn(seed=1))
    rule.observe(drawn(0, H), Info(context=LABELS[:0]), Message(drawn(0, H)))
    rule.observe(drawn(0, H), Info(context=torch.zeros(0, CLASSES).double()), Message(drawn(0, H)))
    assert torch.equal(rule.model.table, before)
    rule.model.weight.requires_grad_(False)
    rule.observe(drawn(), Info(context=LABELS), Message(drawn(seed=1)))
    assert torch.equal(rule.model.table, before)


def test_tokens_have_means_of_their_own_labels_or_of_their_example() -> None:
    h, message = drawn(4, 5, H), drawn(4, 5, H, seed=1)
    by_place = torch.randint(0, CLASSES, (4, 5), generator=torch.Generator().manual_seed(3))
    rule = bound((4, 5, H))
    observed(rule, h, by_place, message)
    flat = bound((20, H))
    observed(flat, h.flatten(0, 1), by_place.flatten(), message.flatten(0, 1))
    torch.testing.assert_close(rule.model.table, flat.model.table)
    whole = bound((4, 5, H))
    observed(whole, h, torch.zeros(4, dtype=torch.long), message)
    torch.testing.assert_close(whole.model.table[0], message.mean((0, 1)))
    delta = whole.credit(h, Info(context=torch.zeros(4, dtype=torch.long))).delta
    torch.testing.assert_close(delta, message.mean((0, 1)).expand(4, 5, H))


def test_features_may_be_in_another_dimension() -> None:
    model = ClassMeansModel(H, CLASSES, features_at=1).double()
    last = ClassMeansModel(H, CLASSES).double()
    for m in (model, last):
        nn.init.normal_(m.weight, generator=torch.Generator().manual_seed(5))
    h, c = drawn(4, H, 5), torch.tensor([0, 1, 1, 2])
    model.check(h, c)
    for m, error in ((model, drawn(4, H, 5, seed=1)), (last, drawn(4, H, 5, seed=1).movedim(1, -1))):
        m.correct(error, c)
    assert model.table.abs().max() > 0
    torch.testing.assert_close(model.table, last.table)
    torch.testing.assert_close(model(h, c).movedim(1, -1), last(h.movedim(1, -1), c))


def test_a_snapshot_of_a_learned_table_is_loaded_as_the_same_function() -> None:
    old, new = bound(learned_table=True), bound()
    for p in old.parameters():
        nn.init.normal_(p, generator=torch.Generator().manual_seed(4))
    new.load_state_dict(old.state_dict())
    torch.testing.assert_close(
        new.credit(drawn(), Info(context=LABELS)).delta, old.credit(drawn(), Info(context=LABELS)).delta
    )
    again = bound()
    again.load_state_dict(new.state_dict())
    assert torch.equal(again.model.weight, new.model.weight)
    assert torch.equal(again.model.table, new.model.table)


@pytest.mark.parametrize(
    "wrong",
    [{"rate": 0.0}, {"rate": 1.5}, {"gain": 0.0}, {"gain": float("inf")}, {"rank": -1}, {"rank": 1.5}],
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        models.class_means(**wrong)


def test_a_rank_above_the_features_is_refused() -> None:
    with pytest.raises(ConfigError, match="interface 'cut': rank=7 for messages of 6 features"):
        bound(model=models.class_means(rank=7))


def test_means_need_a_context() -> None:
    site = Site("cut", (B, H), torch.float64, torch.device("cpu"), nn.Identity())
    with pytest.raises(ConfigError, match="interface 'cut': means of classes need a context"):
        sg.SyntheticGradient(model=models.class_means()).bind(site)


# -- what it is for ----------------------------------------------------------------------------------------


def _network(norm: Callable[[int], nn.Module], inputs: int, layers: int, width: int) -> nn.Sequential:
    sizes = [inputs, *[width] * (layers - 1)]
    parts = [nn.Sequential(nn.Linear(a, width), norm(width), nn.GELU()) for a in sizes[:-1]]
    return nn.Sequential(*parts, nn.Linear(width, 10))


def _error_pct(
    rule: Rule,
    data: tuple[Tensor, Tensor, Tensor, Tensor],
    norm: Callable[[int], nn.Module],
    steps: int,
    **size: int,
) -> float:
    """Return the error of a network on held-out examples after some steps, with a cut after every layer."""
    x, y, held_x, held_y = data
    torch.manual_seed(0)
    model = _network(norm, x.shape[1], **size)
    net = sg.decouple(model, [str(k) for k in range(len(model) - 1)], rule, x[:4])
    engine = sg.engines.InProcess(net, nn.CrossEntropyLoss(), lambda p: torch.optim.Adam(p, 1e-3))
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=generator)
        engine.step(x[rows], y[rows])
    with torch.no_grad():
        return 100 * (net.eval()(held_x).argmax(1) != held_y).double().mean().item()


def test_a_network_with_layer_norm_learns_within_fifty_steps() -> None:
    """Ten classes, each two clouds of points, so that no linear network tells them apart."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(10, 1, 20, generator=generator) * torch.tensor([1.0, -1.0]).view(1, 2, 1)
    y = torch.randint(10, (3000,), generator=generator)
    side = torch.randint(2, (3000,), generator=generator)
    x = centres[y, side] + torch.randn(3000, 20, generator=generator)
    data = x[:2000], y[:2000], x[2000:], y[2000:]
    size = {"layers": 5, "width": 64}
    means = _error_pct(sg.SyntheticGradient(context=10), data, nn.LayerNorm, 50, **size)
    table = _error_pct(sg.SyntheticGradient(context=10, learned_table=True), data, nn.LayerNorm, 50, **size)
    assert means < 5
    assert table > 20


@pytest.mark.slow(reason="networks have to learn real digits for 500 steps")
@pytest.mark.parametrize(
    "norm", [nn.LayerNorm, nn.BatchNorm1d, lambda width: nn.Identity()], ids=["layer", "batch", "none"]
)
def test_digits_are_learned_nearly_as_soon_as_by_backpropagation(norm: Callable[[int], nn.Module]) -> None:
    tasks = pytest.importorskip("synthgrad.lab.tasks")
    data = tasks.load("mnist-10k").hold_out(2000)
    held = (data.train.x.flatten(1), data.train.y, data.test.x.flatten(1), data.test.y)
    size = {"layers": 5, "width": 128}
    backprop, cdni = (
        _error_pct(rule, held, norm, 500, **size)
        for rule in (sg.TrueGradient(), sg.SyntheticGradient(context=10))
    )
    assert backprop < 10
    assert cdni < backprop + 2

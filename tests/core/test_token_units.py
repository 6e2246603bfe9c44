"""Losses over tokens: a message is the gradient of the mean over an example's labels, and examples have shares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import (
    ConfigError,
    ContextError,
    Credit,
    Decoupled,
    DivergedError,
    Info,
    Message,
    Monitor,
    Rule,
    ShapeError,
    SynthgradError,
    Units,
)
from synthgrad.core.in_flight import Batch, InFlight
from synthgrad.core.instruments import Instruments
from synthgrad.core.port import Port
from synthgrad.core.tokens import explain_lost_labels, explained
from synthgrad.rules import heads, record_messages
from synthgrad.rules.targets import losses_of

B, T, H, V = 3, 6, 5, 7


class Listening(Rule):
    """Keeps the messages that come; gives a fixed credit."""

    def credit(self, h: Tensor, info: Info) -> Credit:
        return Credit(torch.ones_like(h))

    def observe(self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()) -> None:
        self.heard = message.gradient.clone()


class Causal(nn.Module):
    """A model that computes the loss of the next token itself, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.top = nn.Embedding(V, H), nn.Linear(H, H), nn.Linear(H, V)

    def forward(self, ids: Tensor, labels: Tensor | None = None, num_items_in_batch: Any = None) -> Tensor:
        logits = self.top(torch.tanh(self.mix(self.embed(ids))))
        if labels is None:
            return logits
        flat = logits[:, :-1].reshape(-1, V), labels[:, 1:].reshape(-1)
        if num_items_in_batch is None:
            return F.cross_entropy(*flat)
        return F.cross_entropy(*flat, reduction="sum") / num_items_in_batch


def ragged() -> tuple[Tensor, Tensor]:
    """Return tokens and labels of sequences of three lengths: 2, 4 and 4 labels count after the shift."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, V, (B, T), generator=generator)
    labels = ids.clone()
    labels[0, 3:] = labels[1, :2] = labels[2, 5:] = -100
    return ids, labels


#: Of `ragged`, after the shift and without one.
SHIFTED, WHOLE = (2, 4, 4), (3, 4, 5)


def network(
    reduction: Any = "next_tokens", rule: Rule | None = None, ignore_index: int = -100
) -> Decoupled[Causal]:
    torch.manual_seed(0)
    rule = Listening() if rule is None else rule
    return sg.decouple(
        Causal().double(), ["mix"], rule, ragged()[0], reduction=reduction, ignore_index=ignore_index
    )


def gradient_of_means(net: Decoupled[Causal]) -> Tensor:
    """Return the gradient, with respect to the message, of the mean over the next tokens of each example."""
    ids, labels = ragged()
    model = net.model
    h = model.mix(model.embed(ids)).detach().requires_grad_()
    logits = model.top(torch.tanh(h))
    each = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    (each.sum(1) / torch.tensor(SHIFTED)).sum().backward()
    assert h.grad is not None
    return h.grad


@pytest.mark.parametrize("items", [None, 40, torch.tensor(40)], ids=["own mean", "number", "tensor"])
def test_a_message_is_the_gradient_of_the_mean_over_an_examples_labels(items: Any) -> None:
    net = network()
    ids, labels = ragged()
    net(ids, labels=labels, num_items_in_batch=items).backward()
    rule: Any = net.interfaces["mix"].rule
    torch.testing.assert_close(rule.heard, gradient_of_means(net), rtol=1e-12, atol=1e-14)
    # The credit of ones has the share of its example: n_b of the labels that count.
    total = 10 if items is None else 40
    weight = net.model.mix.bias.grad
    assert weight is not None
    shares = sum(SHIFTED) / total  # of all examples together
    torch.testing.assert_close(weight, torch.full_like(weight, T * shares), rtol=1e-12, atol=0.0)


def test_without_a_shift_every_label_counts_and_the_context_stands_for_labels() -> None:
    net = network("tokens")
    ids, labels = ragged()
    logits = net(ids, context=labels)
    F.cross_entropy(logits.transpose(1, 2), labels).backward()
    model, rule = net.model, net.interfaces["mix"].rule
    h = model.mix(model.embed(ids)).detach().requires_grad_()
    each = F.cross_entropy(model.top(torch.tanh(h)).transpose(1, 2), labels, reduction="none")
    (each.sum(1) / torch.tensor(WHOLE)).sum().backward()
    torch.testing.assert_close(rule.heard, h.grad, rtol=1e-12, atol=1e-14)  # type: ignore[union-attr]


def test_the_shares_of_a_batch() -> None:
    labels = ragged()[1]
    units = Units("next_tokens")
    assert units.shares_of({"labels": labels}, None).tolist() == [n / 10 for n in SHIFTED]  # type: ignore[union-attr]
    assert Units("tokens").shares_of({}, labels).tolist() == [n / 12 for n in WHOLE]  # type: ignore[union-attr]
    # A label of another kind that means none.
    other = torch.where(labels == -100, 0, labels + 1)
    assert Units("tokens", ignore_index=0).shares_of({}, other).tolist() == [n / 12 for n in WHOLE]  # type: ignore[union-attr]
    assert Units("mean").shares_of({"labels": labels}, None) is None
    # Several labels at a position: all of them count.
    twice = torch.stack([labels, labels], -1)
    assert Units("tokens").shares_of({}, twice).tolist() == [n / 12 for n in WHOLE]  # type: ignore[union-attr]


def test_which_labels_count() -> None:
    units, labels = Units("tokens"), ragged()[1]
    other, classes = torch.zeros(B, T + 1, dtype=torch.long), torch.zeros(B, dtype=torch.long)

    def counted(given: Any, context: Any, target: Any) -> bool:
        shares = units.shares_of(given, context, target)
        assert shares is not None
        return shares.tolist() == [n / 12 for n in WHOLE]

    assert counted({"labels": labels}, other, other)  # the model's own come first
    assert counted({"labels": None}, labels, None)
    assert counted({}, labels, classes)
    assert counted({}, labels, other)  # a target of another layout, such as (T, B)
    assert counted({}, classes, labels)
    assert counted({}, None, labels)
    assert counted({}, torch.zeros_like(labels), labels)  # of two alike, those of the criterion


def test_a_trainer_that_keeps_the_labels_to_itself_says_how_many_there_are() -> None:
    ids, _ = ragged()
    given = {"input_ids": ids, "num_items_in_batch": torch.tensor(20.0)}
    units, mask = Units("next_tokens"), torch.ones(B, T, dtype=torch.long)
    assert units.shares_of(given, None).tolist() == [5 / 20] * B  # type: ignore[union-attr]
    mask[1, 2:] = 0
    shares = units.shares_of({**given, "attention_mask": mask}, None)
    assert shares is not None
    assert shares.tolist() == [5 / 20, 1 / 20, 5 / 20]


def test_rows_are_converted_there_and_back() -> None:
    labels = torch.tensor([[1, -100], [-100, -100], [2, 3]])
    units = Units("tokens").of_batch({}, labels)
    delta = torch.randn(3, 2, 4, dtype=torch.float64)
    sent = units.to_criterion(delta)
    factors = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64).view(3, 1, 1) / 3
    torch.testing.assert_close(sent, delta * factors, rtol=1e-15, atol=0)
    # An example without any label is left out, in both directions.
    back = units.to_example(sent)
    torch.testing.assert_close(back, delta * (factors > 0), rtol=1e-15, atol=0)
    assert units.to_example(delta)[1].abs().max() == 0
    changed = delta.clone()
    assert units.to_example_(changed) is changed
    torch.testing.assert_close(changed, units.to_example(delta), rtol=0, atol=0)
    torch.testing.assert_close(units.counted(delta), delta * (factors > 0), rtol=0, atol=0)
    torch.testing.assert_close(units.to_criterion(delta, 0.5), sent / 2, rtol=1e-15, atol=0)
    scaled = Units("tokens", lambda: torch.tensor(8.0)).of_batch({}, labels)
    torch.testing.assert_close(scaled.to_criterion(delta), sent * 8, rtol=1e-15, atol=0)
    torch.testing.assert_close(scaled.to_example(sent * 8), back, rtol=1e-15, atol=0)
    torch.testing.assert_close(scaled.unscaled().to_example(sent), back, rtol=0, atol=0)
    losses = torch.tensor([3.0, 100.0, 6.0], dtype=torch.float64)
    torch.testing.assert_close(units.reduce(losses), torch.tensor(5.0, dtype=torch.float64))


def test_rows_of_several_messages_have_shares_of_their_own() -> None:
    units = Units("tokens").with_shares(torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64))
    rows = torch.ones(2, 2, 3)
    expected = torch.tensor([[2.0, 2.0], [0.0, 1.0]]).unsqueeze(2).expand(2, 2, 3)
    assert torch.equal(units.to_example(rows, like=rows[0]), expected)
    assert torch.equal(units.to_criterion(rows, like=rows[0])[:, :, 0], torch.tensor([[0.5, 0.5], [0, 1.0]]))
    assert torch.equal(units.reduce(torch.tensor([[2.0, 4.0], [9.0, 5.0]])), torch.tensor([3.0, 5.0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_shares_are_not_rounded_to_half_precision(dtype: torch.dtype) -> None:
    labels = torch.full((2, 1000), 1)
    labels[0, 1:] = -100  # a share of 1 / 1001, and one of almost 1
    units = Units("tokens").of_batch({}, labels)
    rows = torch.randn(2, 200, generator=torch.Generator().manual_seed(0)).to(dtype)
    inverse = torch.tensor([[1001.0], [1001 / 1000]], dtype=torch.float64)
    rtol = 3e-7 if dtype == torch.float32 else 0.0
    for found in (units.to_example(rows), units.to_example_(rows.clone())):
        torch.testing.assert_close(found, (rows.double() * inverse).to(dtype), rtol=rtol, atol=0.0)
    torch.testing.assert_close(
        units.to_criterion(rows), (rows.double() / inverse).to(dtype), rtol=rtol, atol=1e-7
    )


def test_a_batch_without_a_label_that_counts_is_not_divided_by_zero() -> None:
    labels = torch.full((B, T), -100)
    units = Units("next_tokens").of_batch({"labels": labels}, None)
    assert units.to_example(torch.ones(B, T, H)).abs().max() == 0
    assert units.to_criterion(torch.ones(B, T, H)).abs().max() == 0


def test_accumulated_batches_are_counted_together() -> None:
    net = network()
    ids, labels = ragged()
    for part in (slice(0, 1), slice(1, 3)):
        net(ids[part], labels=labels[part], num_items_in_batch=10).backward()
    whole = network()
    whole(ids, labels=labels).backward()
    for name, p in whole.model.named_parameters():
        torch.testing.assert_close(net.model.get_parameter(name).grad, p.grad, msg=name)


class SameHead(Rule):
    """Local loss whose head is what lies above the cut, so that its credit should be the true gradient."""

    listens, mean_of_tokens = False, True
    above: Causal

    def credit(self, h: Tensor, info: Info) -> Credit:
        assert info.context is not None
        leaf = h.detach().requires_grad_()
        with torch.enable_grad():
            outputs = self.above.top(torch.tanh(leaf))
            loss = losses_of(outputs, info.context, self.name).sum()
        return Credit(torch.autograd.grad(loss, leaf)[0])


def test_a_loss_that_is_the_mean_over_an_examples_tokens_weighs_them_as_the_criterion() -> None:
    ids, labels = ragged()
    following = F.pad(labels[:, 1:], (0, 1), value=-100)
    plain = network().model
    plain(ids, labels).backward()
    net = network(rule=SameHead())
    object.__setattr__(net.interfaces["mix"].rule, "above", net.model)  # not as a submodule of the rule
    net(ids, labels=labels, context=following).backward()
    for name, p in net.model.named_parameters():
        expected = plain.get_parameter(name).grad
        torch.testing.assert_close(p.grad, expected, rtol=1e-12, atol=1e-14, msg=name)


def test_what_does_not_fit_is_told() -> None:
    ids, labels = ragged()
    with pytest.raises(
        ContextError, match=r"counts the labels of a batch, class indices \(B, T\), and got none"
    ):
        network()(ids)
    with pytest.raises(
        ContextError, match=r"got a tensor of shape \(3,\) and torch.int64; give the model labels="
    ):
        network()(ids, context=labels[:, 0])
    with pytest.raises(ContextError, match=r"got a tensor of shape \(3, 6\) and torch.float32"):
        network()(ids, context=labels.float())
    with pytest.raises(ConfigError, match="'mean', 'sum', 'tokens', 'next_tokens'"):
        network("token")
    with pytest.raises(ConfigError, match="ignore_index=1.5: expected the label that means none, as an int"):
        network(ignore_index=1.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="those of this batch are not known here"):
        Units("tokens").divisor(torch.ones(2, 3))
    with pytest.raises(
        ShapeError, match=r"'mix': got labels of 2 sequences for a message of shape \(3, 6, 5\)"
    ):
        network("tokens")(ids, context=labels[:2])
    for nothing in (0, torch.tensor(0), 0.0):
        with pytest.raises(ContextError, match="num_items_in_batch=0, by which the loss is divided"):
            network()(ids, labels=labels, num_items_in_batch=nothing)
    assert network().eval()(ids).shape == (B, T, V)  # the plain network asks for nothing


def test_labels_that_the_loss_shifts_are_no_context_for_heads() -> None:
    ids, labels = ragged()
    net = network(rule=sg.LocalLoss(V, heads.token_head()))
    given: dict[str, Tensor]
    for given in ({}, {"labels": labels}):
        with pytest.raises(ContextError, match=r"give labels to the model .* context=F.pad\(labels"):
            net(ids, context=labels, **given)
    following = F.pad(labels[:, 1:], (0, 1), value=-100)
    net(ids, context=following, labels=labels).backward()
    assert net.model.mix.weight.grad is not None
    assert net.model.mix.weight.grad.abs().max() > 0


def test_a_rule_that_leaves_out_other_tokens_is_refused() -> None:
    rule = sg.LocalLoss(V, heads.token_head(), ignore_index=0)
    with pytest.raises(
        ConfigError, match="'mix': its rule leaves out tokens whose label is 0, and reduction='tokens'"
    ):
        network("tokens", rule)
    assert network("tokens", rule, ignore_index=0).units.ignore_index == 0
    assert network("mean", rule).units.reduction == "mean"


def test_messages_are_recorded_as_means_over_labels() -> None:
    ids, labels = ragged()
    following = F.pad(labels[:, 1:], (0, 1), value=-100)
    net = network()

    def step(model: nn.Module, x: Tensor, y: Tensor) -> None:
        F.cross_entropy(model(x).transpose(1, 2), y).backward()

    expected = gradient_of_means(net)
    recorded = record_messages(net.model, ["mix"], step, [(ids, following)], "tokens")
    torch.testing.assert_close(recorded.messages["mix", 0], expected, rtol=1e-12, atol=1e-14)


# -- what was wrong ---------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_for_want_of_labels() -> None:
    labels, hidden = ragged()[1], torch.full((B, T), -100)
    lost = DivergedError("loss", 3)
    assert "no label is left: all 18 labels" in str(explain_lost_labels(lost, 3, hidden))
    assert explain_lost_labels(lost, 5, hidden) is None  # the guard speaks of an earlier batch
    assert explain_lost_labels(DivergedError("mix", 3), 3, hidden) is None
    assert explain_lost_labels(lost, 3, labels) is None
    assert explain_lost_labels(lost, 3, hidden.float()) is None
    assert explain_lost_labels(lost, 3, None) is None
    zeros = torch.zeros(B, T, dtype=torch.long)
    assert explain_lost_labels(lost, 3, zeros, Units(ignore_index=0)) is not None


def test_errors_that_are_about_something_else_stay_as_they_are() -> None:
    table = nn.Embedding(V, H)
    for wrong in (
        lambda: list[int]()[1],
        lambda: torch.ones(2) @ torch.ones(3),
        lambda: table(torch.ones(2)),
        lambda: F.cross_entropy(torch.ones(2, 3), torch.ones(2, 3), weight=torch.ones(7)),
    ):
        with pytest.raises((IndexError, RuntimeError)) as caught, explained(table):
            wrong()
        assert not isinstance(caught.value, SynthgradError)
    with (
        pytest.raises(ConfigError, match="for the embedding of 7 rows"),
        explained(),
    ):  # nobody knows its name
        F.embedding(torch.tensor([9]), table.weight)


# -- batches in flight ------------------------------------------------------------------------------


def test_a_batch_in_flight_keeps_its_shares_and_the_port_uses_them() -> None:
    rule = network("tokens").interfaces["mix"].rule
    monitor = Monitor(every=1)
    port = Port(rule, Units("tokens"), Instruments(monitor=monitor))
    shares = torch.tensor([0.25, 0.0, 0.75], dtype=torch.float64)
    batch = Batch(Info(), None, 4, shares)
    h = torch.randn(B, T, H, dtype=torch.float64)
    flight = port.ask(h, batch, 0)
    learned = port.learned_from(flight)
    assert learned is not None
    torch.testing.assert_close(learned[:, 0, 0], shares)
    other = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    with pytest.raises(ShapeError, match="got labels of 2 sequences"):
        port.ask(h, Batch(Info(), shares=other[:2]), 0)

    again = InFlight.from_state(flight.state_dict())
    assert again.batch.shares is not None
    assert torch.equal(again.batch.shares, shares)
    before = {k: v for k, v in flight.state_dict().items() if k != "shares"}
    assert InFlight.from_state(before).batch.shares is None  # of earlier versions

    # What comes back is right where there are labels; elsewhere nobody looks at it.
    sent = torch.ones(B, T, H, dtype=torch.float64) * shares.view(B, 1, 1)
    sent[1] = 7.0  # as through a batch normalisation
    port.answer(again, sent)
    assert again.message is not None
    torch.testing.assert_close(
        again.message.gradient[:, 0, 0], torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    )
    again.credit = flight.credit  # ones in all rows, also in those that do not count
    port.observe(again, 1)
    assert monitor.collect()["mix"].relative_error < 1e-12
    seen: list[Tensor] = []
    again.release = lambda gradient, message: seen.append(gradient)  # type: ignore[arg-type]
    port.release(again)
    torch.testing.assert_close(seen[0][:, 0, 0], shares)


def test_the_monitor_of_the_plain_loop_leaves_out_examples_without_labels() -> None:
    """With the true gradient the credit equals the message; a row that does not count must not spoil that."""
    ids, labels = ragged()
    labels[1] = -100
    net = network()
    expected = gradient_of_means_of(net, ids, labels)

    class Known(Listening):
        def credit(self, h: Tensor, info: Info) -> Credit:
            delta = expected.clone()
            delta[1] = 5.0
            return Credit(delta)

    net = network(rule=Known())
    net.monitor = Monitor(every=1)
    net(ids, labels=labels).backward()
    assert net.monitor.collect()["mix"].relative_error < 1e-12


def gradient_of_means_of(net: Decoupled[Causal], ids: Tensor, labels: Tensor) -> Tensor:
    model = net.model
    h = model.mix(model.embed(ids)).detach().requires_grad_()
    each = F.cross_entropy(model.top(torch.tanh(h))[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    (each.sum(1) / (labels[:, 1:] != -100).sum(1).clamp(min=1)).sum().backward()
    assert h.grad is not None
    return h.grad

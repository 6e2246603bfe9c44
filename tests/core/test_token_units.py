"""Losses over tokens are divided by the labels that count: a message is the gradient of the sum over tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, Credit, Decoupled, Info, Message, Rule, Units
from synthgrad.engines import InProcess

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
    """Return tokens and labels of sequences of three lengths."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, V, (B, T), generator=generator)
    labels = ids.clone()
    labels[0, 3:] = labels[1, :2] = labels[2, 5:] = -100
    return ids, labels


def network(reduction: Any = "next_tokens") -> Decoupled[Causal]:
    torch.manual_seed(0)
    return sg.decouple(Causal().double(), ["mix"], Listening(), ragged()[0], reduction=reduction)


def summed_gradient(net: Decoupled[Causal]) -> Tensor:
    """Return the gradient of the sum over tokens with respect to the message."""
    ids, labels = ragged()
    model = net.model
    h = model.mix(model.embed(ids)).detach().requires_grad_()
    logits = model.top(torch.tanh(h))
    F.cross_entropy(logits[:, :-1].reshape(-1, V), labels[:, 1:].reshape(-1), reduction="sum").backward()
    assert h.grad is not None
    return h.grad


@pytest.mark.parametrize("items", [None, 40, torch.tensor(40)], ids=["own mean", "number", "tensor"])
def test_a_message_is_the_gradient_of_the_sum_over_tokens(items: Any) -> None:
    net = network()
    ids, labels = ragged()
    net(ids, labels=labels, num_items_in_batch=items).backward()
    rule: Any = net.interfaces["mix"].rule
    torch.testing.assert_close(rule.heard, summed_gradient(net), rtol=1e-12, atol=1e-14)
    # The credit of ones, per token, is divided as the loss is; labels that count: 2 + 4 + 4 after the shift.
    counted = 10 if items is None else 40
    weight = net.model.mix.bias.grad
    torch.testing.assert_close(weight, torch.full_like(weight, B * T / counted), rtol=1e-12, atol=0.0)


def test_without_a_shift_every_label_counts_and_the_context_stands_for_labels() -> None:
    net = network("tokens")
    ids, labels = ragged()
    logits = net(ids, context=labels)
    F.cross_entropy(logits.transpose(1, 2), labels).backward()
    model, rule = net.model, net.interfaces["mix"].rule
    h = model.mix(model.embed(ids)).detach().requires_grad_()
    F.cross_entropy(model.top(torch.tanh(h)).transpose(1, 2), labels, reduction="sum").backward()
    torch.testing.assert_close(rule.heard, h.grad, rtol=1e-12, atol=1e-14)  # type: ignore[union-attr]


def test_a_batch_without_a_label_that_counts_is_not_divided_by_zero() -> None:
    labels = torch.full((B, T), -100)
    units = Units("next_tokens").of_batch({"labels": labels}, None)
    assert units.divisor(torch.ones(B, T, H)) == 1


def test_accumulated_batches_are_counted_together() -> None:
    net = network()
    ids, labels = ragged()
    for part in (slice(0, 1), slice(1, 3)):
        net(ids[part], labels=labels[part], num_items_in_batch=10).backward()
    whole = network()
    whole(ids, labels=labels).backward()
    for name, p in whole.model.named_parameters():
        torch.testing.assert_close(net.model.get_parameter(name).grad, p.grad, msg=name)


def test_where_no_labels_are_known_it_is_told() -> None:
    ids, labels = ragged()
    with pytest.raises(ConfigError, match="this one has none; give the model labels="):
        network()(ids)
    with pytest.raises(ConfigError, match="'mean', 'sum', 'tokens', 'next_tokens'"):
        network("token")
    with pytest.raises(ConfigError, match="counts the labels of a batch in the plain training loop"):
        InProcess(network(), lambda output, y: output, lambda p: torch.optim.SGD(p, 0.1))
    with pytest.raises(ConfigError, match="the plain loop alone knows"):
        Units("tokens").divisor(torch.ones(2, 3))
    assert network().eval()(ids).shape == (B, T, V)  # the plain network asks for nothing

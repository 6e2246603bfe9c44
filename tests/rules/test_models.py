from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthgrad as sg
from synthgrad.core import ConfigError, ContextError, CutError, Info, ShapeError, Site
from synthgrad.rules.models import ConvolutionalModel, DenseModel, convolutional, dense, like_layer


def site(*shape: int, module: nn.Module | None = None) -> Site:
    return Site("here", shape, torch.float32, torch.device("cpu"), module or nn.Identity())


DENSE = [DenseModel(6, hidden, width) for hidden in ((), (8,), (8, 9)) for width in (0, 4)]
CONV = [ConvolutionalModel(3, hidden, width, kernel=3) for hidden in ((), (5,), (5, 4)) for width in (0, 4)]


@pytest.mark.parametrize("model", DENSE + CONV)
def test_first_synthetic_gradients_are_exactly_zero(model: Any) -> None:
    h = torch.randn(4, 6) if isinstance(model, DenseModel) else torch.randn(4, 3, 5, 5)
    c = torch.tensor([0, 1, 2, 3]) if model.width else None
    out = model(h, c)
    assert out.shape == h.shape
    assert torch.equal(out, torch.zeros_like(h))
    (out - 1).square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 6)])
def test_linear_model_is_the_linear_map_of_the_joined_input(shape: tuple[int, ...]) -> None:
    model = DenseModel(6, (), 4)
    nn.init.normal_(model.first.weight)
    assert model.table is not None
    nn.init.normal_(model.table)
    h, c = torch.randn(shape), torch.tensor([3, 0, 1, 1])
    one_hot = nn.functional.one_hot(c, 4).float()
    spread = one_hot if len(shape) == 2 else one_hot.unsqueeze(1).expand(-1, 3, -1)
    joined = torch.cat([h, spread], -1) @ torch.cat([model.first.weight.t(), model.table])
    assert torch.allclose(model(h, c), joined, atol=1e-5)
    assert torch.allclose(model(h, one_hot), joined, atol=1e-5)


def test_context_per_position() -> None:
    model = DenseModel(6, (), 4)
    assert model.table is not None
    nn.init.normal_(model.table)
    c = torch.tensor([[0, 1, 2], [3, 3, 0]])
    assert torch.allclose(model(torch.zeros(2, 3, 6), c), model.table[c])


def test_channel_masks_reach_every_pixel() -> None:
    model = ConvolutionalModel(3, (), 4, kernel=1)
    nn.init.normal_(model.layers[0].weight)  # type: ignore[arg-type]
    h = torch.zeros(2, 3, 5, 5)
    out = model(h, torch.tensor([1, 2]))
    assert torch.equal(out[0], out[0, :, :1, :1].expand_as(out[0]))
    assert not torch.equal(out[0], out[1])
    assert torch.equal(out, model(h, nn.functional.one_hot(torch.tensor([1, 2]), 4).float()))


@pytest.mark.parametrize(
    ("c", "match"),
    [
        (None, "needs a context"),
        (torch.tensor([0, 1, 2, 4]), "class index 4, expected 0 to 3"),
        (torch.tensor([0, -1, 2, 3]), "class index -1"),
        (torch.tensor([0, 1, 2]), r"context of shape \(3,\)"),
        (torch.randn(4, 5), r"expected class indices \(4,\) or features \(4, 4\)"),
        (torch.tensor(1), "context of shape"),
    ],
)
@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 5, 5)])
def test_contexts_that_do_not_fit(c: Tensor | None, match: str, shape: tuple[int, ...]) -> None:
    rule = sg.SyntheticGradient(context=4).bind(site(*shape))
    h = torch.randn(shape)

    def use() -> None:
        rule.check(h, Info(context=c))
        rule.credit(h, Info(context=c))

    with pytest.raises(ContextError, match=match):
        use()


@pytest.mark.parametrize(
    ("built", "given"), [((4, 6), (4, 7)), ((4, 3, 5, 5), (4, 2, 5, 5)), ((4, 3, 5, 5), (4, 3))]
)
def test_messages_of_another_shape(built: tuple[int, ...], given: tuple[int, ...]) -> None:
    rule = sg.SyntheticGradient().bind(site(*built))
    with pytest.raises(ShapeError, match="interface 'here'"):
        rule.check(torch.randn(given), Info())


def test_convolutional_model_takes_any_resolution() -> None:
    rule = sg.SyntheticGradient((4,)).bind(site(4, 3, 8, 8))
    assert rule.credit(torch.randn(2, 3, 5, 7), Info()).delta.shape == (2, 3, 5, 7)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "wrong", [{"hidden": (0,)}, {"hidden": (2.5,)}, {"context": 0}, {"hidden": (3,), "model": dense()}]
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        sg.SyntheticGradient(**wrong)


def test_factories_refuse_messages_that_do_not_fit() -> None:
    with pytest.raises(CutError, match="use models.dense"):
        convolutional()(site(4, 6), 0)
    with pytest.raises(CutError, match="has no features"):
        dense()(site(4), 0)


def test_model_structured_like_its_layer() -> None:
    layer = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.LeakyReLU(0.3))
    made = like_layer()(site(4, 6, module=layer), 0)
    kinds = [type(m) for m in made.rest]  # type: ignore[union-attr]
    assert kinds == [nn.BatchNorm1d, nn.LeakyReLU, nn.Linear]
    assert made.rest[1].negative_slope == 0.3  # type: ignore[index,union-attr]
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    made = like_layer()(site(4, 4, 5, 5, module=convolution), 10)
    shapes = [m.weight.shape for m in made.layers if isinstance(m, nn.Conv2d)]  # type: ignore[union-attr]
    assert shapes == [(4, 14, 3, 3), (4, 4, 3, 3)]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in made.modules())


def test_regression_error_is_a_sum_over_features_and_a_mean_over_examples() -> None:
    rule = sg.SyntheticGradient().bind(site(4, 6))
    h, message = torch.randn(4, 6), sg.core.Message(torch.full((4, 6), 2.0))
    assert rule.observe(h, Info(), message).item() == pytest.approx(6 * 4)


def test_maps_let_the_label_say_something_else_at_every_place() -> None:
    model = ConvolutionalModel(2, (), 3, kernel=3, maps=(4, 5))
    h, c = torch.zeros(3, 2, 4, 5), torch.tensor([0, 1, 2])
    assert model(h, c).abs().max() == 0
    assert model.table is not None
    with torch.no_grad():
        model.table.copy_(torch.arange(3 * 40).view(3, 40).float())
    assert torch.equal(model(h, c), torch.arange(3 * 40).view(3, 2, 4, 5).float())
    assert torch.equal(model(h, torch.eye(3)), model(h, c))  # features in place of indices


def test_maps_are_of_one_size() -> None:
    model = ConvolutionalModel(2, (), 3, maps=(4, 5))
    with pytest.raises(ShapeError, match=r"\(B, 2, 4, 5\)"):
        model.check(torch.zeros(1, 2, 5, 4), torch.tensor([0]))
    assert ConvolutionalModel(2, (), 0, maps=(4, 5)).table is None  # nothing to map without a context


WITH_STATE = [
    DenseModel(6, hidden, width, norm=norm, receiver=5)
    for hidden, norm in (((), True), ((8,), True), ((8, 9), False))
    for width in (0, 4)
]


@pytest.mark.parametrize("model", WITH_STATE)
def test_first_synthetic_gradients_are_zero_whatever_the_receiver_is_in(model: DenseModel) -> None:
    c = torch.tensor([0, 1, 2, 3]) if model.width else None
    out = model(torch.randn(4, 6), c, torch.randn(4, 5))
    assert torch.equal(out, torch.zeros(4, 6))


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 6)])
@pytest.mark.parametrize("width", [0, 4])
def test_linear_model_of_message_state_and_context_is_linear_in_all(
    shape: tuple[int, ...], width: int
) -> None:
    model = DenseModel(6, (), width, receiver=5)
    for p in model.parameters():
        nn.init.normal_(p)
    assert model.state is not None
    h, s, c = torch.randn(shape), torch.randn(4, 5), torch.tensor([3, 0, 1, 1]) if width else None
    by_state = s @ model.state.weight.t()
    without = DenseModel(6, (), width)
    without.load_state_dict({n: v for n, v in model.state_dict().items() if n != "state.weight"})
    expected = without(h, c) + (by_state if len(shape) == 2 else by_state.unsqueeze(1))
    assert torch.allclose(model(h, c, s), expected, atol=1e-5)


def test_a_rule_that_sees_the_receiver_learns_what_depends_on_it_alone() -> None:
    """The target is a function of the receiver's state: without it, M can only learn the mean, zero."""
    generator = torch.Generator().manual_seed(0)
    h, s = (torch.randn(64, 6, generator=generator) for _ in range(2))

    def error(receiver: bool) -> float:
        rule = sg.SyntheticGradient(receiver=receiver).bind(replace(site(64, 6), receiver=6))
        optimizer = torch.optim.SGD(rule.parameters(), 0.05)
        info = Info(receiver=s)
        for _ in range(200):
            optimizer.zero_grad()
            rule.check(h, info)
            loss = rule.observe(h, info, sg.core.Message(s.clone()), rule.credit(h, info).pending)
            loss.backward()
            optimizer.step()
        return loss.item()

    assert error(receiver=True) < 1e-3
    assert error(receiver=False) > 4


def test_the_receivers_state_must_be_told() -> None:
    rule = sg.SyntheticGradient((8,), context=4, receiver=True)
    assert "sees the receiver" in repr(rule)
    with pytest.raises(CutError, match="'here': its rule is to see the state of the receiving module"):
        rule.bind(site(4, 6))
    bound = rule.bind(replace(site(4, 6), receiver=5))
    h, c = torch.randn(4, 6), torch.tensor([0, 1, 2, 3])
    with pytest.raises(ContextError, match=r"got none, expected \(4, 5\)"):
        bound.check(h, Info(c))
    with pytest.raises(ContextError, match=r"got one of shape \(4, 6\), expected \(4, 5\)"):
        bound.check(h, Info(c, receiver=torch.randn(4, 6)))
    bound.check(h, Info(c, receiver=torch.randn(4, 5)))


def test_models_that_take_no_state_are_refused_with_one() -> None:
    rule = sg.SyntheticGradient(receiver=True)
    with pytest.raises(CutError, match="a ConvolutionalModel takes no state"):
        rule.bind(replace(site(4, 3, 5, 5), receiver=5))


def test_a_rule_that_does_not_ask_for_the_state_is_built_as_ever() -> None:
    torch.manual_seed(0)
    plain = sg.SyntheticGradient((8,), context=4).bind(site(4, 6))
    torch.manual_seed(0)
    told = sg.SyntheticGradient((8,), context=4).bind(replace(site(4, 6), receiver=5))
    assert list(plain.state_dict()) == list(told.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, told.state_dict()[name]), name

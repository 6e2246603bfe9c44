"""Where the features of a message are: the same rule in two layouts says the same, place by place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthgrad as sg
from synthgrad.core import ConfigError, ContextError, CutError, Info, Message, Rule, ShapeError, Site
from synthgrad.rules import SyntheticInput, convolutional_input, heads, models
from synthgrad.rules.models import ConvolutionalModel, DenseModel

SPACE = {1: (7,), 2: (5, 6), 3: (3, 4, 5)}
LABELS = torch.tensor([0, 1, 2, 2])


def site(
    shape: tuple[int, ...], features_dim: int | None, module: nn.Module | None = None, **more: Any
) -> Site:
    where = torch.device("cpu")
    return Site(
        "here", shape, torch.float64, where, module or nn.Identity(), features_dim=features_dim, **more
    )


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def made(rule: Rule, h: Tensor, features_dim: int) -> Any:
    bound = rule.bind(site(tuple(h.shape), features_dim))
    generator = torch.Generator().manual_seed(0)
    for p in bound.parameters():  # the last layer starts at zero, where there is little to see
        nn.init.normal_(p, generator=generator)
    return bound


def layer_of(dims: int) -> nn.Module:
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
    return nn.Sequential(kind(2, 6, 3), norm(6), nn.LeakyReLU(0.3))


M = sg.SyntheticGradient
RULES: dict[str, Callable[[], Rule]] = {
    "linear": lambda: M(context=3, model=models.convolutional()),
    "hidden": lambda: M(context=3, model=models.convolutional((5,), kernel=3)),
    "maps": lambda: M(context=3, model=models.convolutional((5,), kernel=3, maps=True)),
    "no context": lambda: M(model=models.convolutional((5,), norm=False)),
    "dense": lambda: M(context=3, model=models.dense((5,))),
    "dense, linear": lambda: M(context=3, model=models.dense()),
    "convolutional head": lambda: sg.LocalLoss(3, heads.convolutional_head(5)),
}
#: Those that take the messages of one dimension in space as tokens where the features are last.
CHOOSING: dict[str, Callable[[], Rule]] = {
    "by default": lambda: M((5,), context=3, kernel=3),
    "maps by default": lambda: M(context=3, maps=True),
    "like layer": lambda: M(context=3, model=models.like_layer()),
    "local loss": lambda: sg.LocalLoss(3),
    "local loss, hidden": lambda: sg.LocalLoss(3, heads.linear_head((5,))),
    "critic": lambda: sg.Sobolev(3, (5,)),
    "critic of the value": lambda: sg.Sobolev(3, (5,), critic="value"),
}
BOTH = [(d, name) for d in SPACE for name in RULES] + [(d, name) for d in (2, 3) for name in CHOOSING]


@pytest.mark.parametrize(("dims", "name"), BOTH)
def test_two_layouts_of_one_message_are_told_the_same(dims: int, name: str) -> None:
    """Channels first and last, with the same weights: credits and losses are equal up to the permutation."""
    h, message, info = drawn(4, 6, *SPACE[dims]), drawn(4, 6, *SPACE[dims]) * 0.3, Info(context=LABELS)
    last, their_message = h.movedim(1, -1).contiguous(), message.movedim(1, -1).contiguous()
    make = (RULES | CHOOSING)[name]
    first_rule, last_rule = made(make(), h, 1), made(make(), last, -1)
    assert list(first_rule.state_dict()) == list(last_rule.state_dict())
    for name, value in first_rule.state_dict().items():
        assert torch.equal(value, last_rule.state_dict()[name]), name
    first_rule.check(h, info)
    last_rule.check(last, info)
    one, other = first_rule.credit(h, info), last_rule.credit(last, info)
    assert one.delta.abs().max() > 1e-3
    assert one.delta.shape == h.shape
    torch.testing.assert_close(other.delta.movedim(-1, 1), one.delta, rtol=1e-12, atol=1e-14)
    losses = [
        rule.observe(x, info, Message(d)) if rule.listens else credit.loss
        for rule, x, d, credit in (
            (first_rule, h, message, one),
            (last_rule, last, their_message, other),
        )
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-12)
    grads = [
        torch.autograd.grad(loss, list(r.parameters()), allow_unused=True)
        for loss, r in zip(losses, (first_rule, last_rule), strict=True)
    ]
    for a, b in zip(*grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("shape", "features_dim", "kind", "where"),
    [
        ((4, 6), None, DenseModel, -1),
        ((4, 7, 6), None, DenseModel, -1),
        ((4, 7, 6), 2, DenseModel, -1),
        ((4, 7, 6), -1, DenseModel, -1),
        ((4, 6, 7), 1, ConvolutionalModel, 1),
        ((4, 6, 5, 5), None, ConvolutionalModel, 1),
        ((4, 5, 5, 6), 3, ConvolutionalModel, 3),
        ((4, 5, 5, 6), -1, ConvolutionalModel, 3),
        ((4, 5, 6, 5), 2, ConvolutionalModel, 2),
        ((4, 6, 2, 3, 4), None, ConvolutionalModel, 1),
        ((4, 2, 3, 4, 6), -1, ConvolutionalModel, 4),
        ((4, 1, 2, 3, 4, 6), None, DenseModel, -1),
    ],
)
def test_the_model_follows_from_where_the_features_are(
    shape: tuple[int, ...], features_dim: int | None, kind: type, where: int
) -> None:
    rule = M((5,), context=3).bind(site(shape, features_dim))
    model: Any = rule.model
    assert type(model) is kind
    assert model.features_at == where
    assert (model.features if kind is DenseModel else model.channels) == 6
    info = Info(context=LABELS)
    h = drawn(*shape)
    rule.check(h, info)
    delta = rule.credit(h, info).delta
    assert delta is not None
    assert delta.shape == shape


def test_kernels_of_volumes_are_smaller() -> None:
    sizes = {}
    for dims, space in SPACE.items():
        layers: Any = M().bind(site((4, 6, *space), 1)).model.layers
        sizes[dims] = layers[-1].kernel_size
    assert sizes == {1: (5,), 2: (5, 5), 3: (3, 3, 3)}
    layers = M(kernel=1).bind(site((4, 6, 3, 4, 5), 1)).model.layers
    assert layers[-1].kernel_size == (1, 1, 1)  # type: ignore[index,union-attr]


@pytest.mark.parametrize("dims", SPACE)
@pytest.mark.parametrize("last", [False, True])
def test_models_like_their_layer(dims: int, last: bool) -> None:
    shape = (4, 6, *SPACE[dims])
    shape = (4, *SPACE[dims], 6) if last else shape
    rule = M(model=models.like_layer()).bind(site(shape, -1 if last else 1, layer_of(dims)))
    parts = [m for m in rule.model.modules() if not list(m.children())]
    if dims == 1 and last:  # tokens
        assert [type(m) for m in parts] == [nn.Linear, nn.BatchNorm1d, nn.LeakyReLU, nn.Linear]
        return
    convolution, norm, activation = layer_of(dims)  # type: ignore[misc]
    assert [type(m) for m in parts] == [type(convolution), type(norm), nn.LeakyReLU, type(convolution)]
    assert [m.kernel_size for m in (parts[0], parts[-1])] == [(3,) * dims] * 2
    assert parts[2].negative_slope == 0.3
    assert parts[0].out_channels == 6


def test_a_model_like_its_layer_has_the_kernel_of_its_own_dimensions() -> None:
    layer = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(2), nn.Conv1d(6, 6, 7), nn.Unflatten(2, (5, 6)))
    rule = M(model=models.like_layer()).bind(site((4, 6, 5, 6), 1, layer))
    kernels = [m.kernel_size for m in rule.model.modules() if isinstance(m, nn.Conv2d)]
    assert kernels == [(3, 3), (3, 3)]


@pytest.mark.parametrize("dims", SPACE)
def test_maps_are_laid_out_as_the_message_is(dims: int) -> None:
    space = SPACE[dims]
    h = torch.zeros(3, *space, 2, dtype=torch.float64)
    rule = M(context=3, model=models.convolutional(maps=True)).bind(site(tuple(h.shape), -1))
    table: Any = rule.model.table
    with torch.no_grad():
        table.copy_(torch.arange(table.numel()).view_as(table))
    delta = rule.credit(h, Info(context=torch.arange(3))).delta
    assert delta is not None
    assert torch.equal(delta.movedim(-1, 1).flatten(1), table)


def test_a_context_for_every_place_goes_with_dense_models() -> None:
    h = drawn(2, 6, 3)  # (B, C, L)
    rule = made(M(context=4, model=models.dense()), h, 1)
    c = torch.tensor([[0, 1, 2], [3, 3, 0]])
    rule.check(h, Info(context=c))
    tokens = made(M(context=4, learned_table=True), h.movedim(1, -1), -1)
    one, other = (r.credit(x, Info(context=c)).delta for r, x in ((rule, h), (tokens, h.movedim(1, -1))))
    assert torch.equal(one, other.movedim(-1, 1))
    with pytest.raises(ContextError, match="expected class indices"):  # one for all places of a mask
        made(M(context=4), h, 1).check(h, Info(context=torch.zeros(2, 6, dtype=torch.long)))


def test_heads_of_channels_average_over_the_places() -> None:
    """A (B, C, L) message is averaged along L; tokens, (B, T, H), are taken whole."""
    h = drawn(4, 6, 8)
    scores = made(sg.LocalLoss(3), h, 1)
    weights: Any = scores.head.layers[-1]
    halves = torch.stack([h[:, :, :4].mean(2), h[:, :, 4:].mean(2)], 2).flatten(1)
    torch.testing.assert_close(scores.head(h), weights(halves))
    assert made(sg.LocalLoss(3), h, 2).head.layers[-1].in_features == 48
    for dims, space in SPACE.items():
        assert made(sg.LocalLoss(3), drawn(4, 6, *space), 1).head.layers[-1].in_features == 6 * 2**dims


@pytest.mark.parametrize(
    ("built", "at", "given"),
    [
        ((4, 7, 6), -1, (4, 8, 6)),
        ((4, 6, 7), 1, (4, 5, 7)),
        ((4, 6), None, (4, 6, 1)),
        ((4, 5, 5, 6), -1, (4, 5, 6, 5)),
        ((4, 6, 5, 5), None, (4, 6, 5)),
        ((4, 6, 2, 3, 4), 1, (4, 4, 2, 3, 6)),
    ],
)
@pytest.mark.parametrize("name", ["local loss", "critic", "by default"])
def test_messages_of_another_size_are_refused_by_name(
    built: tuple[int, ...], at: int | None, given: tuple[int, ...], name: str
) -> None:
    rule = CHOOSING[name]().bind(site(built, at))
    rule.check(drawn(*built), Info(context=LABELS))
    if (name, built) == ("by default", (4, 7, 6)) or (name, built) == ("by default", (4, 6)):
        given = (*given[:-1], 7)  # a dense model takes any number of positions
    with pytest.raises(ShapeError, match=r"interface 'here': got a message of shape \(4, .* expect"):
        rule.check(drawn(*given), Info(context=LABELS))


def test_what_has_no_fixed_size_may_have_another() -> None:
    rule, head = M((4,)).bind(site((4, 5, 6, 3), -1)), sg.LocalLoss(3).bind(site((4, 5, 6, 3), -1))
    h = drawn(4, 8, 7, 3)
    for r in (rule, head):
        r.check(h, Info(context=LABELS))
        delta = r.credit(h, Info(context=LABELS)).delta
        assert delta is not None
        assert delta.shape == h.shape


@pytest.mark.parametrize("dims", SPACE)
@pytest.mark.parametrize("last", [False, True])
def test_synthetic_inputs_have_the_channels_where_the_message_has_them(dims: int, last: bool) -> None:
    space = SPACE[dims]
    shape = (4, *space, 6) if last else (4, 6, *space)
    x = drawn(4, 2, *(2 * n for n in space))
    where = site(shape, -1 if last else 1, inputs=tuple(x.shape))
    rules = [SyntheticInput((5,), norm=False), SyntheticInput(model=convolutional_input((5,), norm=False))]
    for rule in rules[dims == 1 and last :]:  # tokens have dense ones by default
        bound = rule.bind(where)
        kinds = {type(m).__name__ for m in bound.model.modules()}
        assert f"Conv{dims}d" in kinds
        assert bound.supply(x, Info()).h.shape == shape
    torch.manual_seed(1)
    one = convolutional_input((5,))(site((4, 6, *space), 1, inputs=tuple(x.shape))).double()
    torch.manual_seed(1)
    other = convolutional_input((5,))(site((4, *space, 6), -1, inputs=tuple(x.shape))).double()
    torch.testing.assert_close(other(x).movedim(-1, 1), one(x), rtol=1e-12, atol=1e-12)


def test_an_input_of_another_size_is_refused_by_name() -> None:
    x = drawn(4, 2, 6, 6)
    for model in (None, sg.rules.dense_input()):
        rule = (
            (SyntheticInput(()) if model is None else SyntheticInput((), model=model))
            if model is None
            else SyntheticInput((), model=model)
        )
        bound = rule.bind(site((4, 6, 3, 3), 1, inputs=tuple(x.shape)))
        bound.check(x, Info())
        with pytest.raises(ShapeError, match=r"interface 'here': got an input of shape \(4, 2, 6, 5\)"):
            bound.check(x[..., :5], Info())
    own = SyntheticInput((), model=lambda s: nn.AdaptiveAvgPool2d(3)).bind(
        site((4, 2, 3, 3), 1, inputs=(4, 2, 6, 6))
    )
    own.check(x[..., :5], Info())  # what a model of the user's own takes, it knows


@pytest.mark.parametrize(
    ("shape", "features_dim", "at"),
    [((4, 6), None, 1), ((4, 7, 6), None, 2), ((4, 7, 6), -2, 1), ((4, 6, 5, 5), None, 1), ((4, 5, 5, 6), -1, 3), ((2, 3, 4, 5, 6, 7), None, 5)],
)  # fmt: skip
def test_a_site_says_where_the_features_are(
    shape: tuple[int, ...], features_dim: int | None, at: int
) -> None:
    assert site(shape, features_dim).features_at == at


@pytest.mark.parametrize(("features_dim", "shape"), [(0, (4, 6)), (2, (4, 6)), (-2, (4, 6)), (-4, (4, 3, 6))])
def test_a_dimension_that_cannot_hold_features_is_refused(features_dim: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(CutError, match=f"features_dim={features_dim} for messages of shape"):
        M().bind(site(shape, features_dim))


def test_even_kernels_are_refused() -> None:
    for make in (
        lambda: M(kernel=4),
        lambda: models.convolutional(kernel=4),
        lambda: convolutional_input(kernel=2),
    ):
        with pytest.raises(ConfigError, match="expected an odd number"):
            make()

"""Which dimension of a message is the batch and which holds the features, however the network has turned it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import CutError


class Turn(nn.Module):
    """Permutes the dimensions."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(*self.order)


def turned(conv: Any, pool: Any, order: tuple[int, ...], width: int = 4) -> nn.Sequential:
    """A convolutional network whose message, after module 1, has its dimensions in another order."""
    back = [order.index(k) for k in range(len(order))]
    low = nn.Sequential(conv(3, width, 3, padding=1), nn.ReLU())
    top = nn.Sequential(
        conv(width, width, 3, padding=1), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(width, 3)
    )
    return nn.Sequential(low, Turn(*order), Turn(*back), top)


@pytest.mark.parametrize(
    ("conv", "pool", "size", "order", "features"),
    [
        (nn.Conv1d, nn.AdaptiveAvgPool1d, (4,), (0, 1, 2), 1),
        (nn.Conv1d, nn.AdaptiveAvgPool1d, (4,), (0, 2, 1), 2),  # as many channels as positions
        (nn.Conv2d, nn.AdaptiveAvgPool2d, (4, 4), (0, 1, 2, 3), 1),
        (nn.Conv2d, nn.AdaptiveAvgPool2d, (4, 4), (0, 2, 3, 1), 3),
        (nn.Conv3d, nn.AdaptiveAvgPool3d, (2, 3, 4), (0, 1, 2, 3, 4), 1),
        (nn.Conv3d, nn.AdaptiveAvgPool3d, (2, 3, 4), (0, 2, 3, 4, 1), 4),
        (nn.Conv2d, nn.AdaptiveAvgPool2d, (4, 4), (0, 2, 1, 3), 2),
    ],
)
def test_features_are_where_the_convolution_below_has_put_them(
    conv: Any, pool: Any, size: tuple[int, ...], order: tuple[int, ...], features: int
) -> None:
    torch.manual_seed(0)
    net = sg.decouple(turned(conv, pool, order), ["1"], sg.SyntheticGradient(), torch.randn(4, 3, *size))
    assert net.graph.sites["1"].features_at == features


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.mix = nn.LSTM(6, 8), nn.Linear(8, 8)
        self.top, self.out = nn.LSTM(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.top(torch.tanh(self.mix(self.low(x)[0])))[0][-1])


class TurnedInside(nn.Module):
    """Takes batches first, and hands on the time first."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(6, 8), nn.Linear(8, 3)
        self.turn = Turn(1, 0, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.turn(torch.tanh(self.mix(x))).mean(0))


@pytest.mark.parametrize("times", [5, 7])  # 5 is the size of the batch too
@pytest.mark.parametrize("make", [TimeFirst, TurnedInside])
def test_time_first_is_told_apart(make: type[nn.Module], times: int) -> None:
    shape = (times, 5, 6) if make is TimeFirst else (5, times, 6)
    x, y = torch.randn(*shape, dtype=torch.float64), torch.randint(0, 3, (5,))
    cut = "mix" if make is TimeFirst else "turn"
    model = make().double()
    net = sg.decouple(model, [cut], sg.SyntheticGradient(context=3), x)
    assert net.graph.layouts[cut].batch_dim == 1
    assert net.graph.sites[cut].shape == (5, times, 8)
    # … and units are those of the batch: what M learns is the gradient of each example's loss.
    told: list[Tensor] = []

    class Listening(sg.NoBackprop):
        listens = True

        def observe(self, h: Tensor, info: Any, message: Any, pending: Any = ()) -> None:
            told.append(message.gradient)

    net = sg.decouple(model, [cut], Listening(), x)
    sg.engines.InProcess(net, F.cross_entropy, lambda p: torch.optim.SGD(p, 0.1)).step(x, y)
    h: list[Tensor] = []
    model.get_submodule(cut).register_forward_hook(lambda *a: h.append(a[2]))
    (expected,) = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), h)
    torch.testing.assert_close(told[0], expected.movedim(1, 0))


def test_a_transformer_encoder_with_the_time_first_learns_as_in_backpropagation() -> None:
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(8, 2, 16, 0.0) for _ in range(2)]
    model = nn.Sequential(*layers, Turn(1, 0, 2), nn.Flatten(), nn.Linear(40, 3)).double()
    x, y = torch.randn(5, 5, 8, dtype=torch.float64), torch.randint(0, 3, (5,))
    net = sg.decouple(model, ["0"], sg.TrueGradient(), x)
    assert net.graph.layouts["0"].batch_dim == 1
    trainer = sg.engines.InProcess(net, F.cross_entropy, lambda p: torch.optim.SGD(p, 0.1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        trainer.step(x, y)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(net.model.state_dict()[name], value, msg=name)


def test_what_the_user_says_goes_before_what_is_found() -> None:
    model = turned(nn.Conv1d, nn.AdaptiveAvgPool1d, (0, 1, 2))
    x = torch.randn(4, 3, 6)
    net = sg.decouple(model, ["1"], sg.SyntheticGradient(), x, features_dim=-1)
    assert net.graph.sites["1"].features_at == 2
    net = sg.decouple(model, ["1"], sg.SyntheticGradient(), x, batch_dim={"1": 2}, features_dim={"1": 1})
    assert net.graph.sites["1"].shape == (6, 4, 4)
    assert net.graph.sites["1"].features_at == 2


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"features_dim": 3}, r"features_dim=3 .* from -3 to 2"),
        ({"batch_dim": {"0": 0}}, r"batch_dim names '0', where there is no cut"),
        ({"features_dim": 0}, "is both the batch and the features"),
    ],
)
def test_dimensions_that_cannot_be(given: dict[str, Any], match: str) -> None:
    model = turned(nn.Conv1d, nn.AdaptiveAvgPool1d, (0, 1, 2))
    with pytest.raises(CutError, match=match):
        sg.decouple(model, ["1"], sg.SyntheticGradient(), torch.randn(4, 3, 6), **given)


class FixedLength(nn.Module):
    """Time first, for sequences of one length and batches of one size: nothing can be found out by running it."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.low, self.out = nn.Linear(6, 8), nn.LSTM(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.low(torch.tanh(self.mix(x.reshape(5, 5, 6))))[0][-1])


def test_what_cannot_be_found_out_is_asked_for() -> None:
    x = torch.randn(5, 5, 6)
    with pytest.raises(CutError, match=r"could not be found out .* say batch_dim=0 .* or batch_dim=1"):
        sg.decouple(FixedLength(), ["mix"], sg.SyntheticGradient(context=3), x)
    net = sg.decouple(FixedLength(), ["mix"], sg.SyntheticGradient(context=3), x, batch_dim=1)
    assert net.graph.layouts["mix"].batch_dim == 1

"""Models that keep intermediate results can be decoupled, trained and recoupled; lazy ones are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import CutError
from synthgrad.core.copies import copied


class Attending(nn.Module):
    """Keeps an attention map, with its graph, in places where a user may look for it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)
        self.maps: dict[str, list[Tensor]] = {"last": []}

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        self.weights = h.softmax(-1)
        self.maps["last"] = [self.weights * 2]
        return h * self.weights


def test_a_copy_has_the_values_without_the_history() -> None:
    model = nn.Sequential(Attending(), nn.Linear(8, 3))
    model(torch.randn(4, 6))
    twin = copied(model)
    assert torch.equal(twin[0].weights, model[0].weights)  # type: ignore[union-attr]
    assert not twin[0].weights.requires_grad  # type: ignore[union-attr]
    assert torch.equal(twin[0].maps["last"][0], model[0].weights * 2)  # type: ignore[index,operator,union-attr]
    assert model[0].weights.requires_grad, "the model itself is left as it is"  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_networks_with_a_history_are_decoupled_and_recoupled() -> None:
    x, y = torch.randn(8, 6), torch.randint(0, 3, (8,))
    for first in (Attending(), nn.utils.weight_norm(nn.Linear(6, 8))):
        model = nn.Sequential(first, nn.ReLU(), nn.Linear(8, 3))
        model(x)
        net = sg.decouple(model, ["1"], sg.SyntheticGradient(context=3), x)
        sg.engines.InProcess(net, F.cross_entropy, lambda p: torch.optim.SGD(p, 0.1)).step(x, y)
        assert torch.equal(sg.recouple(net)(x), net.model(x))


def test_lazy_modules_are_refused_by_name() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(CutError, match=r"'0.weight' has no shape yet.*run one batch through the model"):
        sg.decouple(model, ["1"], sg.TrueGradient(), torch.randn(4, 6))

"""What ``bench chaos`` and ``bench absence`` train: a network in stages, and the batch of every number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ....core import Decoupled, Rule, decouple
from ....rules import LocalLoss, SyntheticGradient, SyntheticInput
from ...tasks import fully_connected, load

__all__ = ["accuracy_error_pct", "digits_by_number", "network", "plain_network"]

_CLASSES = 10
_RULES: Mapping[str, Callable[[], Rule]] = {
    "cdni": partial(SyntheticGradient, context=_CLASSES),
    "dni": SyntheticGradient,
    "local_loss": partial(LocalLoss, _CLASSES),
}


def plain_network(layers: int, width: int, stages: int, seed: int) -> tuple[nn.Sequential, list[str]]:
    """Return the network without interfaces, and the name of the last layer of each stage but the last."""
    torch.manual_seed(seed)
    model = fully_connected((1, 28, 28), _CLASSES, layers, width)
    names = [name for name, _ in model.named_children()]
    return model, [names[layers * (k + 1) // stages - 1] for k in range(stages - 1)]


def network(layers: int, width: int, stages: int, seed: int, rule: str, *, synthetic: bool) -> Decoupled:
    """Return the network of all processes, cut into stages of as many layers each, later ones have one more."""
    with torch.random.fork_rng():
        model, cuts = plain_network(layers, width, stages, seed)
        made = _RULES[rule]()
        example = torch.zeros(2, 1, 28, 28)
        return decouple(model, cuts, made, example, inputs=SyntheticInput() if synthetic else None)


def digits_by_number(
    data: str, data_dir: str | None, batch_size: int, seed: int
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Return a function that returns the batch of a number: every process finds the same one, whenever it comes."""
    images = load(data, None if data_dir is None else Path(data_dir)).train
    per_epoch = len(images) // batch_size
    orders: dict[int, Tensor] = {}

    def batch(number: int) -> tuple[Tensor, Tensor]:
        epoch, k = divmod(number, per_epoch)
        if epoch not in orders:
            orders.clear()
            orders[epoch] = torch.randperm(
                len(images), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            )
        ids = orders[epoch][k * batch_size : (k + 1) * batch_size]
        return images.x[ids], images.y[ids]

    return batch


def accuracy_error_pct(net: nn.Module, data: str, data_dir: str | None) -> float:
    """Return the error of a network on the test set, in percent."""
    images = load(data, None if data_dir is None else Path(data_dir)).test
    net.eval()
    with torch.no_grad():
        wrong = sum(
            int((net(x).argmax(1) != y).sum())
            for x, y in zip(images.x.split(1000), images.y.split(1000), strict=True)
        )
    return 100.0 * wrong / len(images)

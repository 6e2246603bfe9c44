"""A decoupled network in Lightning's Trainer; run: python examples/lightning_trainer.py

The module of Lightning has a decoupled network inside and is otherwise as ever: its loss trains network and rules. With
`TrueGradient` the weights must be those that the plain network gets from the same Trainer, which is checked.
"""

import logging
import warnings

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import synthgrad as sg

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")  # advice about workers and loggers

torch.manual_seed(0)
sizes = ((8, 32), (32, 32))
model = nn.Sequential(
    *(nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()) for a, b in sizes), nn.Linear(32, 4)
)
x = torch.randn(256, 8)
y = x[:, :4].argmax(1)


class Classifier(lightning.LightningModule):
    """Trains any network; one that is decoupled is told the labels, too."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, labels = batch
        with sg.context(labels):  # a plain network does not listen
            return F.cross_entropy(self.net(inputs), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def train(net: nn.Module) -> None:
    """Train a network for ten epochs."""
    options = {"accelerator": "cpu", "devices": 1, "barebones": True}
    trainer = lightning.Trainer(max_epochs=10, gradient_clip_val=1.0, **options)
    trainer.fit(Classifier(net), DataLoader(TensorDataset(x, y), batch_size=32))


same = sg.decouple(model, ["0", "1"], sg.TrueGradient(), x[:32])
ours = sg.decouple(model, ["0", "1"], sg.SyntheticGradient(context=4), x[:32])
for name, net in (("backpropagation", model), ("true gradient", same), ("synthetic gradient", ours)):
    train(net)
    print(f"{name:20} error {(net.eval()(x).argmax(1) != y).float().mean():.1%}")
for name, weight in sg.recouple(same).named_parameters():
    torch.testing.assert_close(weight, model.get_parameter(name), rtol=1e-3, atol=1e-4, msg=name)
print("ok: with the true gradient every weight is that of backpropagation")

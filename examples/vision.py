"""A residual network on images, cut after each of its stages, without locks; run: python examples/vision.py

Every residual block is a module of its own, so no skip connection crosses a cut. A local loss gives each module credit
as soon as its forward pass is done. With `TrueGradient` the same engine must equal backpropagation, which is checked.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg


class Block(nn.Module):
    """A residual block that halves the resolution."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, out, 3, 2, 1), nn.BatchNorm2d(out), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1), nn.BatchNorm2d(out))
        self.skip = nn.Conv2d(channels, out, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.skip(x))


torch.manual_seed(0)
blocks = [Block(3, 16), Block(16, 32), Block(32, 32)]
model = nn.Sequential(*blocks, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)))

# Noise with a bright quarter; the class is which.
y = torch.arange(256) % 4
x = torch.randn(256, 3, 16, 16)
for image, quarter in zip(x, y.tolist(), strict=True):
    row, column = 8 * (quarter // 2), 8 * (quarter % 2)
    image[:, row : row + 8, column : column + 8] += 1


def train(rule: sg.Rule) -> sg.core.Decoupled[nn.Sequential]:
    """Train without locks for three epochs."""
    net = sg.decouple(model, ["0", "1", "2"], rule, x[:32])
    trainer = sg.engines.InProcess(net, F.cross_entropy, lambda p: torch.optim.SGD(p, 0.05, momentum=0.9))
    for step in range(24):
        batch = slice(32 * (step % 8), 32 * (step % 8 + 1))
        trainer.step(x[batch], y[batch])
    return net


same, ours = train(sg.TrueGradient()), train(sg.LocalLoss(4))
optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
for step in range(24):
    batch = slice(32 * (step % 8), 32 * (step % 8 + 1))
    optimizer.zero_grad()
    F.cross_entropy(model(x[batch]), y[batch]).backward()
    optimizer.step()
for name, net in (("backpropagation", model), ("true gradient", same), ("local losses", ours)):
    print(f"{name:16} error {(net.eval()(x).argmax(1) != y).float().mean():.1%}")
for name, weight in sg.recouple(same).named_parameters():
    torch.testing.assert_close(weight, model.get_parameter(name), rtol=1e-3, atol=1e-4, msg=name)
print("ok: with the true gradient every weight is that of backpropagation")

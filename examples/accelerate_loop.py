"""A decoupled network in a loop with Accelerate; run: python examples/accelerate_loop.py

`prepare` takes a decoupled network as any other. With gradient accumulation Accelerate divides the loss, which the cut
cannot see: `loss_scale` tells it. With `TrueGradient` the weights must be those of the plain network, which is checked.
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import synthgrad as sg

ACCUMULATE = 2

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
x = torch.randn(256, 8)
y = x[:, :4].argmax(1)


def train(net: nn.Module) -> None:
    """Train for ten epochs; updates of two batches each."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    loader = DataLoader(TensorDataset(x, y), batch_size=32)
    prepared, optimizer, batches = accelerator.prepare(net, torch.optim.Adam(net.parameters(), 1e-2), loader)
    for _ in range(10):
        for inputs, labels in batches:
            with accelerator.accumulate(prepared), sg.context(labels):  # a plain network does not listen
                accelerator.backward(F.cross_entropy(prepared(inputs), labels))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()


def cut(rule: sg.Rule) -> sg.core.Decoupled[nn.Sequential]:
    """Return a copy of the network, cut after both of its hidden layers."""
    return sg.decouple(model, ["1", "3"], rule, x[:32], loss_scale=lambda: 1 / ACCUMULATE)


same, ours = cut(sg.TrueGradient()), cut(sg.SyntheticGradient(context=4))
for name, net in (("backpropagation", model), ("true gradient", same), ("synthetic gradient", ours)):
    train(net)
    print(f"{name:20} error {(net.eval()(x).argmax(1) != y).float().mean():.1%}")
for name, weight in sg.recouple(same).named_parameters():
    torch.testing.assert_close(weight, model.get_parameter(name), rtol=1e-3, atol=1e-4, msg=name)
print("ok: with the true gradient every weight is that of backpropagation")

"""One network in two processes that do not wait for each other; run: torchrun --nproc-per-node 2 examples/two_stages.py

Each process trains its half. The first learns from a synthetic gradient as soon as it has sent its activations; answers
may come up to two steps late. With `TrueGradient` and a window of 0 the two together are backpropagation, which is checked.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

import synthgrad as sg

torch.manual_seed(0)  # every process builds the same network and goes through the same data
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
x = torch.randn(1024, 8)
y = x[:, :4].argmax(1)


def sgd(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    """Return the optimizer of a stage."""
    return torch.optim.SGD(parameters, 0.2)


def train(rule: sg.Rule, window: int) -> sg.core.Decoupled[nn.Sequential]:
    """Train in stages for two epochs, and bring all weights into every process."""
    net = sg.decouple(model, ["1"], rule, x[:32])
    with sg.engines.Stages(net, F.cross_entropy, sgd, window=window, timeout_s=60) as stages:
        for batch in list(torch.arange(len(x)).split(32)) * 2:
            stages.step(x[batch], y[batch])
        stages.gather()
    return net


rank, _ = sg.engines.stages.join()
same = train(sg.TrueGradient(), window=0)
ours = train(sg.SyntheticGradient(context=4), window=2)
plain = copy.deepcopy(model)
optimizer = sgd(list(plain.parameters()))
for batch in list(torch.arange(len(x)).split(32)) * 2:
    optimizer.zero_grad()
    F.cross_entropy(plain(x[batch]), y[batch]).backward()
    optimizer.step()
for name, weight in same.model.named_parameters():
    torch.testing.assert_close(weight, plain.get_parameter(name), msg=name)
if rank == 0:
    for name, net in (("backpropagation", plain), ("true gradient", same), ("synthetic gradient", ours)):
        print(f"{name:20} error {(net.eval()(x).argmax(1) != y).float().mean():.1%}")
    print("ok: with the true gradient every weight is that of backpropagation")
torch.distributed.destroy_process_group()

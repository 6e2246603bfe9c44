"""A stage that goes on without its neighbours, in a process of its own; it prints a line of JSON for every batch.

python -m tests.engines.stages.elastic_program STAGE STORE UNTIL [SECONDS OF A STEP]
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from synthgrad import SyntheticGradient, decouple
from synthgrad.core.errors import SynthgradError
from synthgrad.engines import Stages
from synthgrad.engines.stages import ElasticGloo

WIDTH, CLASSES, BATCH = 16, 4, 8


def main(stage: int, store: str, until: int, step_s: float = 0.02) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(2)]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))
    x = torch.randn(64, BATCH, WIDTH)
    y = torch.randint(CLASSES, (64, BATCH))
    net = decouple(model, ["0", "1"], SyntheticGradient(context=CLASSES), x[0])
    trainer = Stages(
        net,
        F.cross_entropy,
        partial(torch.optim.SGD, lr=0.05),
        transport=ElasticGloo(stage, 3, store),
        on_loss="continue",
        patience_s=1.5,
        timeout_s=60.0,
    )
    say(came=time.time())
    with trainer:
        for number in trainer.turns(until):
            time.sleep(step_s)
            k = number % 64
            trainer.step(x[k] if stage == 0 else None, y[k])
            say(number=number, at=time.time())
        facts = {name: getattr(trainer, name) for name in ("num_alone", "num_given_up", "num_skipped")}
        finite = all(bool(p.isfinite().all()) for p in trainer.module.parameters())
        say(done=True, finite=finite, **facts)


def say(**words: object) -> None:
    print(json.dumps(words), flush=True)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *map(float, sys.argv[4:]))
    except SynthgradError as error:
        say(error=str(error))
        sys.exit(2)

"""The trainer of the transformers library takes a decoupled network for the model that it is."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import synthgrad as sg
from tests.llama import llama

pytestmark = [
    pytest.mark.slow(reason="imports transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def test_its_columns_are_kept_and_its_losses_counted_as_of_the_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = llama(4)
    ids = torch.randint(0, 50, (8, 8))
    rows = [{"input_ids": row, "labels": row} for row in ids]
    found: list[Any] = []
    for decoupled in (False, True):
        net = copy.deepcopy(model)
        if decoupled:
            net = sg.decouple(net, ["model.layers.1"], sg.TrueGradient(), ids)
        options = transformers.TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=4,
            num_train_epochs=2,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            seed=1,
        )
        trainer = transformers.Trainer(net, options, train_dataset=rows)
        loss = trainer.train().training_loss
        weights = (net.model if decoupled else net).state_dict()
        found.append((loss, {n: w.clone() for n, w in weights.items()}))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], value, msg=name)


def test_a_model_that_computes_its_own_loss_trains_in_the_plain_loop_and_in_process() -> None:
    model, ids = llama(4).double(), torch.randint(0, 50, (4, 8))
    plain = copy.deepcopy(model)
    sgd = lambda p: torch.optim.SGD(p, 0.1)  # noqa: E731
    nets = [sg.decouple(model, ["model.layers.1"], sg.TrueGradient(), ids) for _ in range(2)]
    loop, optimizer = sgd(nets[0].parameters()), sgd(plain.parameters())
    trainer = sg.engines.InProcess(nets[1], lambda output, y: output.loss, sgd)
    for _ in range(3):
        for net, made in ((nets[0], loop), (plain, optimizer)):
            made.zero_grad()
            net(input_ids=ids, labels=ids).loss.backward()
            made.step()
        trainer.step({"input_ids": ids, "labels": ids})
    for name, value in plain.state_dict().items():
        for net in nets:
            torch.testing.assert_close(net.model.state_dict()[name], value, msg=name)

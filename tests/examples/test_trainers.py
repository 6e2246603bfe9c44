"""The trainers of Lightning and transformers find in a decoupled network all that they look for in its model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import synthgrad as sg
from tests.llama import llama
from tests.networks import CASES, CLASSES

pytestmark = [
    pytest.mark.slow(reason="imports transformers or Lightning"),
    pytest.mark.filterwarnings("ignore"),  # their own deprecations and advice are not ours
]

CUT = "model.layers.1"
IDS = torch.randint(0, 50, (8, 8), generator=torch.Generator().manual_seed(0))
LABELS = IDS.clone()
LABELS[0, 4:] = LABELS[5, :5] = -100
ROWS = [{"input_ids": t, "labels": y} for t, y in zip(IDS, LABELS, strict=True)]


def cut(model: Any, rule: sg.Rule) -> Any:
    return sg.decouple(model, [CUT], rule, IDS, reduction="next_tokens")


def trainer_of(net: Any, folder: Path, rows: Any = ROWS, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers", reason="needs transformers (extra: examples)")
    pytest.importorskip("accelerate", reason="needs accelerate (extra: examples)")
    chosen = {"save_strategy": "no", "num_train_epochs": 2, "per_device_train_batch_size": 2, **options}
    arguments = transformers.TrainingArguments(
        str(folder), report_to=[], use_cpu=True, disable_tqdm=True, seed=1, **chosen
    )
    return transformers.Trainer(net, arguments, train_dataset=rows, eval_dataset=ROWS)


@pytest.mark.parametrize("tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize(
    "options",
    [{"gradient_accumulation_steps": 2}, {"label_smoothing_factor": 0.1}],
    ids=["accumulated", "smoothed"],
)
def test_it_trains_and_evaluates_as_with_the_model(options: Any, tied: bool, tmp_path: Path) -> None:
    model = llama(3, tied=tied)
    plain, net = copy.deepcopy(model), cut(model, sg.TrueGradient())
    losses = []
    for each in (plain, net):
        trainer = trainer_of(each, tmp_path, **options)
        losses.append((trainer.train().training_loss, trainer.evaluate()["eval_loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(net.model.state_dict()[name], value, msg=name)


class Heard(sg.Rule):
    """Keeps the messages that come, and what a batch with no padding would have brought."""

    def credit(self, h: torch.Tensor, info: sg.core.Info) -> sg.core.Credit:
        return sg.core.Credit(torch.zeros_like(h))

    def observe(
        self, h: torch.Tensor, info: sg.core.Info, message: sg.core.Message, pending: Any = ()
    ) -> None:
        self.heard = message.gradient.clone()


def test_its_shifted_labels_are_counted_in_the_units_of_messages(tmp_path: Path) -> None:
    """Updates of all eight sequences, in batches of two: each message is the gradient of the mean over an example's
    tokens, whatever their number in the update."""
    net = cut(llama(3), Heard())
    start = copy.deepcopy(net.model).eval()
    options = {"gradient_accumulation_steps": 4, "num_train_epochs": 1, "max_steps": 1}
    seen: list[torch.Tensor] = []
    net.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    trainer_of(net, tmp_path, **options).train()
    batch = seen[-1]
    labels = LABELS[[int((row == IDS).all(1).nonzero()) for row in batch]]
    kept: list[torch.Tensor] = []

    def keep(module: Any, args: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    start.get_submodule(CUT).register_forward_hook(keep)
    logits = start(input_ids=batch).logits
    each = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    (each.sum(1) / (labels[:, 1:] != -100).sum(1)).sum().backward()
    torch.testing.assert_close(net.interfaces[CUT].rule.heard, kept[0].grad)


def test_a_run_of_its_trainer_is_resumed_with_its_rules(tmp_path: Path) -> None:
    whole, resumed = (cut(llama(3), sg.SyntheticGradient((8,))) for _ in range(2))
    saving = {"save_strategy": "steps", "save_steps": 4}
    trainer_of(whole, tmp_path, **saving).train()
    trainer_of(resumed, tmp_path, **saving).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_tied_weights_are_refused_by_its_checkpoints_and_saved_by_the_model(tmp_path: Path) -> None:
    net = cut(llama(3, tied=True), sg.SyntheticGradient())
    with pytest.raises(RuntimeError, match="tensors share memory"):
        trainer_of(net, tmp_path, save_strategy="steps", save_steps=4).train()
    net.save_pretrained(tmp_path / "model")
    loaded = type(net.model).from_pretrained(tmp_path / "model")
    for name, value in net.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_rules_are_told_a_column_named_context(tmp_path: Path) -> None:
    rows = [{**row, "context": row["input_ids"][0] % 5} for row in ROWS]
    net = cut(llama(3), sg.SyntheticGradient(context=5))
    before = net.rules.state_dict()["model_layers_1.model.table"].clone()
    trainer_of(net, tmp_path, rows).train()
    assert not torch.equal(net.rules.state_dict()["model_layers_1.model.table"], before)


def test_it_generates_and_has_what_its_model_has() -> None:
    model = llama(3).eval()
    net = cut(model, sg.SyntheticGradient())
    options: Any = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(net.generate(IDS[:2, :3], **options), model.generate(IDS[:2, :3], **options))
    assert net.config.to_dict() == model.config.to_dict()
    for name in ("main_input_name", "device", "dtype", "loss_type", "base_model_prefix"):
        assert getattr(net, name) == getattr(model, name), name
    assert net.num_parameters() == model.num_parameters()


def test_lightning_trains_saves_and_resumes(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="needs lightning (extra: examples)")
    case = CASES["batchnorm"]
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    y = x[:, :CLASSES].argmax(1)

    class Classifier(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            rule = sg.SyntheticGradient((6,), context=CLASSES)
            torch.manual_seed(0)
            self.net = sg.decouple(case.model(torch.float32), case.at, rule, x[:8])

        def training_step(self, batch: Any) -> Any:
            inputs, labels = batch
            return F.cross_entropy(self.net(inputs, context=labels), labels)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), 1e-2)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]

    def fit(epochs: int, checkpoint: str | None = None) -> Classifier:
        module = Classifier()
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=epochs,
            gradient_clip_val=1.0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            enable_checkpointing=False,
        )
        trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=16), ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module

    fit(2)
    resumed, whole, by_hand = fit(4, str(tmp_path / "2.ckpt")), fit(4), Classifier()
    (optimizer,), (schedule,) = by_hand.configure_optimizers()
    for _ in range(4):
        for k in range(4):
            optimizer.zero_grad()
            by_hand.training_step((x[16 * k : 16 * k + 16], y[16 * k : 16 * k + 16])).backward()
            torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
            optimizer.step()
        schedule.step()
    for name, value in by_hand.state_dict().items():
        assert torch.equal(whole.state_dict()[name], value), name
        assert torch.equal(resumed.state_dict()[name], value), name

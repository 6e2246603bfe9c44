"""A decoder of Hugging Face in its own Trainer, cut in the middle; run: python examples/language_model.py

The Trainer needs no change. `reduction="next_tokens"` tells the cut how the model computes its loss: the mean over the
labels that count, shifted by one. With `TrueGradient` the result must be that of the plain model, which is checked.
"""

import copy
import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import synthgrad as sg

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=32, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
model = LlamaForCausalLM(config).train()

# Sequences that count up from somewhere: the next token is easy to foresee.
tokens = (torch.randint(0, 64, (64, 1)) + torch.arange(16)) % 64
labels = tokens.clone()
labels[:16, 12:] = -100  # as padding has it: nothing to predict there
rows = [{"input_ids": t, "labels": y} for t, y in zip(tokens, labels, strict=True)]


def train(net: torch.nn.Module) -> float:
    """Train with the unchanged Trainer; return the mean loss."""
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder, per_device_train_batch_size=8, gradient_accumulation_steps=2, num_train_epochs=4, seed=1,
            learning_rate=3e-3, use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no",
            disable_tqdm=True,
        )  # fmt: skip
        return Trainer(net, options, train_dataset=rows).train().training_loss


def cut(rule: sg.Rule) -> sg.core.Decoupled[LlamaForCausalLM]:
    """Return a copy of the model, cut after its second layer."""
    return sg.decouple(model, ["model.layers.1"], rule, tokens[:8], reduction="next_tokens")


plain, same, ours = copy.deepcopy(model), cut(sg.TrueGradient()), cut(sg.SyntheticGradient())
losses = {"backpropagation": train(plain), "true gradient": train(same), "synthetic gradient": train(ours)}
for name, loss in losses.items():
    print(f"{name:20} mean loss {loss:.3f}")

for name, weight in sg.recouple(same).named_parameters():
    torch.testing.assert_close(weight, plain.get_parameter(name), msg=name)
ours.eval()
print(
    "continued:", ours.generate(tokens[:1, :4], max_new_tokens=4, do_sample=False, pad_token_id=0)[0].tolist()
)
print("ok: with the true gradient every weight is that of backpropagation")

"""What is measured of a model: names and bytes to the last one, and of times only what no machine changes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import synthgrad as sg
from synthgrad.core import ConfigError, ContextError, Credit, CutError, Info, Message, Rule, Site
from synthgrad.lab.tasks.gpt import gpt
from synthgrad.lab.tasks.networks import convolutional, fully_connected
from synthgrad.planner import profile
from synthgrad.planner.clock import Clock
from synthgrad.planner.profile import profile_model
from synthgrad.planner.table import CostTable
from tests.networks import CASES, CLASSES

#: Bytes of a float32.
FLOAT = 4


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, CLASSES))


def batch(size: int = 16) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 6), torch.randint(0, CLASSES, (size,))


def measured(model: nn.Module, x: Any, **options: Any) -> CostTable:
    settings: dict[str, Any] = {"repeats": 1, **options}
    return profile_model(model, x, **settings)


def figures(table: CostTable, name: str) -> list[Any]:
    return [getattr(row.cost, name) for row in table.modules]


class Ticks(Clock):
    """A clock that shows seconds which only modules of the tests make pass."""

    now = 0.0

    def mark(self) -> float:
        return Ticks.now


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> type[Ticks]:
    monkeypatch.setattr("synthgrad.planner.passes.Clock", Ticks)
    Ticks.now = 0.0
    return Ticks


class _Takes(torch.autograd.Function):
    """Passes a tensor on, and lets time pass, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward_s: float, backward_s: float) -> Tensor:
        Ticks.now += forward_s
        ctx.backward_s = backward_s
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        Ticks.now += ctx.backward_s
        return grads[0], None, None


def takes(x: Tensor, forward_s: float, backward_s: float) -> Tensor:
    return _Takes.apply(x, forward_s, backward_s)  # type: ignore[no-any-return]


class Timed(nn.Module):
    """A layer of one weight that takes seconds for each example, and some for a call.

    Args:
        forward: seconds of the forward pass.
        inputs, weights: of the backward pass, for the gradient of the input and that of the weight.
        call: of the forward pass, however many examples there are.
    """

    def __init__(self, forward: float, inputs: float, weights: float, call: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.forward_s, self.inputs_s, self.weights_s, self.call_s = forward, inputs, weights, call

    def forward(self, x: Tensor) -> Tensor:
        rows = len(x)
        weight = takes(self.weight, 0, self.weights_s * rows)
        return takes(x, self.forward_s * rows + self.call_s, self.inputs_s * rows) * weight


class TimedSGD(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        Ticks.now += 100.0 * sum(len(group["params"]) for group in self.param_groups)
        return super().step(closure)


class Listed(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


# -- what belongs to whom, by a clock of the test ------------------------------------------------------------


def timed_model() -> Listed:
    return Listed(Timed(1, 2, 3, call=16), Timed(4, 5, 6), Timed(7, 8, 9, call=32))


def test_each_module_gets_its_own_seconds(ticks: type[Ticks]) -> None:
    table = measured(timed_model(), torch.ones(8, 2), optimizer=lambda p: TimedSGD(p, 0.0), repeats=3)
    assert [row.name for row in table.modules] == ["layers.0", "layers.1", "output"]
    assert figures(table, "forward_s") == [8 + 16, 32, 56 + 32]
    assert figures(table, "backward_s") == [24, 88, 136]  # below the first module nobody wants a gradient
    assert figures(table, "backward_input_s") == [0, 88 - 48, 136 - 72]
    assert figures(table, "optimizer_s") == [100, 100, 100]
    assert figures(table, "forward_call_s") == [16, 0, 32]
    assert figures(table, "backward_call_s") == [0, 0, 0]


def test_what_is_frozen_has_no_backward_pass_and_no_update(ticks: type[Ticks]) -> None:
    model = timed_model()
    model.layers[0].requires_grad_(False)
    table = measured(model, torch.ones(8, 2), optimizer=lambda p: TimedSGD(p, 0.0))
    assert figures(table, "backward_s") == [0, 48, 136]
    assert figures(table, "backward_input_s") == [0, 0, 64]
    assert figures(table, "optimizer_s") == [0, 100, 100]
    assert figures(table, "parameter_bytes") == [0, FLOAT, FLOAT]
    model = timed_model()
    model.layers[1].requires_grad_(False)
    table = measured(model, torch.ones(8, 2), optimizer=lambda p: TimedSGD(p, 0.0))
    assert figures(table, "backward_s") == [24, 40, 136]  # it passes the gradient on
    assert figures(table, "optimizer_s") == [100, 0, 100]


def test_the_seconds_of_the_criterion_belong_to_the_last_module(ticks: type[Ticks]) -> None:
    def criterion(output: Tensor, target: None) -> Tensor:
        Ticks.now += 1000
        return output.mean()

    table = measured(timed_model(), torch.ones(8, 2), criterion=criterion)
    assert figures(table, "forward_s") == [24, 32, 56 + 32 + 1000]
    assert figures(table, "forward_call_s") == [16, 0, 1032]


def test_the_median_of_the_passes_counts(ticks: type[Ticks]) -> None:
    class Stumbles(Timed):
        passes = 0

        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 8:
                self.passes += 1
                Ticks.now += 1e6 * (self.passes % 5 == 0)
            return super().forward(x)

    table = measured(Listed(Stumbles(1, 1, 1), Timed(1, 1, 1)), torch.ones(8, 2), repeats=9)
    assert figures(table, "forward_s") == [8, 8]


def test_a_model_made_for_one_size_has_no_part_of_a_call(ticks: type[Ticks]) -> None:
    class Sized(Timed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.view(8, 2))

    table = measured(Listed(Sized(1, 1, 1, call=5), Timed(1, 1, 1, call=5)), torch.ones(8, 2))
    assert figures(table, "forward_s") == [13, 13]
    assert figures(table, "forward_call_s") == [0, 0]
    one = measured(Listed(Timed(1, 1, 1, call=5), Timed(1, 1, 1)), torch.ones(1, 2))
    assert (one.batch_size, figures(one, "forward_call_s")) == (1, [0, 0])


class TimedRule(Rule):
    """A rule that takes 1 second to give credit, 10 to learn from its own loss, and 100 to learn from a message."""

    def __init__(self, own: bool, listens: bool) -> None:
        super().__init__()
        self.own, self.listens = own, listens
        self.learns_at_once = own

    def build(self, site: Site) -> None:
        self.weight = nn.Parameter(torch.zeros(()))

    def credit(self, h: Tensor, info: Info) -> Credit:
        Ticks.now += 1
        loss = takes(self.weight, 0, 10) if self.own else None
        return Credit(torch.zeros_like(h), loss=loss, pending=(self.weight,))

    def observe(self, h: Tensor, info: Info, message: Message, pending: Any = ()) -> Tensor:
        assert pending == ()  # what a late message meets is outdated
        assert message.gradient.shape == h.shape
        # Of the mean of 16 squares of ones, 8 times: a message is the gradient of the loss of an example.
        assert torch.equal(message.gradient, torch.ones(8, 2))
        return takes(self.weight, 30, 70)


@pytest.mark.parametrize(
    ("own", "listens", "credit_s", "local_s", "observe_s"),
    [
        (False, True, 1, 0, 30 + 70 + 100),
        (True, False, 1, 10 + 100, 0),
        (True, True, 1, 10 + 100, 30 + 70),  # it is updated with the module below
        (False, False, 1, 0, 0),
    ],
)
def test_a_rule_gets_the_seconds_that_it_takes_in_a_stage(
    ticks: type[Ticks], own: bool, listens: bool, credit_s: float, local_s: float, observe_s: float
) -> None:
    model = timed_model()
    options: dict[str, Any] = {"optimizer": lambda p: TimedSGD(p, 0.0)}
    table = measured(model, torch.ones(8, 2), rule=TimedRule(own, listens), **options)
    assert figures(table, "credit_s") == [credit_s, credit_s, 0]
    assert figures(table, "local_s") == [local_s, local_s, 0]
    assert figures(table, "observe_s") == [observe_s, observe_s, 0]
    without = measured(model, torch.ones(8, 2), **options)
    assert figures(without, "credit_s") == figures(without, "observe_s") == [0, 0, 0]
    assert figures(without, "forward_s") == figures(table, "forward_s")


# -- names and bytes -----------------------------------------------------------------------------------------


def test_bytes_of_a_small_network() -> None:
    x, y = batch()
    table = measured(mlp(), x, target=y, criterion=F.cross_entropy)
    assert (table.batch_size, table.model) == (16, "Sequential")
    assert [row.name for row in table.modules] == ["1", "3", "output"]
    assert figures(table, "output_bytes") == [16 * 8 * FLOAT, 16 * 4 * FLOAT, 0]
    assert figures(table, "parameter_bytes") == [56 * FLOAT, 36 * FLOAT, 25 * FLOAT]
    held = figures(table, "held_bytes")
    # The input of each linear layer and the output of each tanh, whose storage is the input of the layer above.
    assert held[:2] == [16 * (6 + 8) * FLOAT, 16 * (8 + 4) * FLOAT]
    assert held[2] >= 16 * (4 + CLASSES) * FLOAT  # and what the criterion keeps


def test_bytes_of_half_precision_and_of_bits_that_are_shared() -> None:
    class Twice(nn.Module):
        """Two views of one storage are kept, which counts once."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x[:, :4] * self.weight[:4], x[:, 4:] * self.weight[4:]], 1)

    x = torch.randn(16, 6, dtype=torch.bfloat16)
    model = Listed(nn.Linear(6, 8), Twice(), nn.Linear(8, 2)).bfloat16()
    table = measured(model, x)
    assert figures(table, "output_bytes") == [16 * 8 * 2, 16 * 8 * 2, 0]
    assert figures(table, "held_bytes")[:2] == [16 * 6 * 2, 16 * 8 * 2]


@pytest.mark.parametrize("kind", ["dense", "images", "gpt"])
def test_networks_of_the_laboratory(kind: str) -> None:
    rule: Rule = sg.SyntheticGradient(context=10)
    y = torch.randint(0, 10, (8,))
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    if kind == "dense":
        model, x = fully_connected((1, 4, 4), 10, 9, 8), torch.randn(8, 1, 4, 4)
        expected = [8 * 8 * FLOAT] * 8
    elif kind == "images":
        model, x = convolutional((3, 8, 8), 10, 4, 4), torch.randn(8, 3, 8, 8)
        expected = [8 * 4 * side * side * FLOAT for side in (4, 2, 1)]
    else:
        model, x = gpt(10, width=8, blocks=2, heads=2, context=4), torch.randint(0, 10, (8, 4))
        expected = [8 * 4 * 8 * FLOAT] * 3
        rule, y = sg.SyntheticGradient(), torch.randint(0, 10, (8, 4))
        criterion = lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten())  # noqa: E731
    table = measured(model, x, target=y, criterion=criterion, rule=rule)
    assert table.batch_size == 8
    assert figures(table, "output_bytes") == [*expected, 0]
    assert sum(figures(table, "parameter_bytes")) == sum(p.numel() for p in model.parameters()) * FLOAT
    assert all(cost > 0 for name in ("credit_s", "observe_s") for cost in figures(table, name)[:-1])
    for row in table.modules:
        assert row.cost.forward_s > 0
        assert row.cost.backward_s > 0
        assert row.cost.optimizer_s > 0
        assert 0 <= (row.cost.backward_input_s or 0) <= row.cost.backward_s
        assert row.cost.forward_call_s <= row.cost.forward_s
        assert row.cost.backward_call_s <= row.cost.backward_s


def test_models_of_transformers_bring_their_loss() -> None:
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=8, vocab_size=32, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    ids = torch.randint(0, 32, (4, 8))
    untied = copy.deepcopy(config)
    untied.tie_word_embeddings = False
    model = transformers.GPT2LMHeadModel(untied)
    table = measured(model, {"input_ids": ids, "labels": ids}, rule=sg.SyntheticGradient())
    assert (table.batch_size, table.names) == (4, ["transformer.h.0", "transformer.h.1"])
    assert figures(table, "output_bytes") == [4 * 8 * 8 * FLOAT] * 2 + [0]
    with pytest.raises(CutError, match=r"untie them \(tie_word_embeddings=False in transformers\)"):
        measured(transformers.GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids})


def test_a_vision_transformer_is_given_a_criterion() -> None:
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    config = transformers.ViTConfig(
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_size=8,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
    )
    table = measured(
        transformers.ViTForImageClassification(config),
        torch.randn(4, 3, 8, 8),
        target=torch.zeros(4, dtype=torch.long),
        criterion=lambda output, y: F.cross_entropy(output.logits, y),
    )
    assert figures(table, "output_bytes") == [4 * 5 * 8 * FLOAT] * 2 + [
        0
    ]  # four patches, and the one for the class


def test_batch_in_the_second_dimension(ticks: type[Ticks]) -> None:
    class Steps(nn.RNN):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x)[0]

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.below, self.above = Steps(3, 4), Steps(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.below(x)
            Ticks.now += 2 + h.shape[1]
            return self.above(h)

    table = measured(Recurrent(), torch.randn(5, 8, 3))
    assert table.batch_size == 8
    assert figures(table, "forward_call_s")[-1] == 2  # a quarter of the examples, and all of the time


def test_messages_that_join_examples_and_time(ticks: type[Ticks]) -> None:
    class Joined(Listed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(0, 1))

    def criterion(output: Tensor, y: Tensor) -> Tensor:
        Ticks.now += 3 + len(y)
        return F.cross_entropy(output, y)

    y = torch.randint(0, 2, (24,))
    table = measured(
        Joined(nn.Linear(3, 3), nn.Linear(3, 2)), torch.randn(8, 3, 3), target=y, criterion=criterion
    )
    assert table.batch_size == 8
    assert figures(table, "output_bytes") == [24 * 3 * FLOAT, 0]
    assert figures(table, "forward_s") == [0, 27]
    assert figures(table, "forward_call_s") == [0, 3]  # a quarter of the examples has a quarter of the labels


# -- what the user gives ---------------------------------------------------------------------------------------


def test_candidates_of_the_user_are_put_in_order() -> None:
    table = measured(mlp(), batch()[0], candidates=["2", "0"])
    assert [row.name for row in table.modules] == ["0", "2", "output"]


def test_a_rule_for_each_site() -> None:
    seen: list[tuple[str, tuple[int, ...]]] = []

    def rule(site: Site) -> Rule:
        seen.append((site.name, site.shape))
        return sg.NoBackprop() if site.name == "1" else sg.SyntheticGradient(context=CLASSES)

    x, y = batch()
    table = measured(mlp(), x, target=y, criterion=F.cross_entropy, rule=rule)
    assert seen == [("1", (16, 8)), ("3", (16, 4))]
    assert [s > 0 for s in figures(table, "observe_s")] == [False, True, False]


def test_candidates_for_which_there_is_no_rule_are_left_out() -> None:
    class Narrow(sg.NoBackprop):
        def build(self, site: Site) -> None:
            if site.shape[-1] > 4:
                raise CutError(f"interface '{site.name}': too wide")

    assert measured(mlp(), batch()[0], rule=Narrow()).names == ["3"]
    with pytest.raises(CutError, match="'1': too wide"):
        measured(mlp(), batch()[0], rule=Narrow(), candidates=["1", "3"])
    wide = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    with pytest.raises(CutError, match="'1': too wide"):
        measured(wide, batch()[0], rule=Narrow())


def test_every_rule_that_needs_something_gets_it() -> None:
    x, y = batch()
    losses = {"criterion": lambda out, y: F.cross_entropy(out, y, reduction="none"), "target": y}
    for rule in (
        sg.rules.StaleGradient(100),
        sg.rules.Sobolev(CLASSES, critic="value"),
        sg.rules.HeadGradient(CLASSES),
        sg.LocalLoss(CLASSES),
        sg.rules.TrueGradient(),
    ):
        table = measured(mlp(), x, rule=rule, **losses)
        assert figures(table, "credit_s")[0] > 0, type(rule).__name__
    with pytest.raises(ContextError, match="interface '1': its rule needs labels as context"):
        measured(mlp(), x, rule=sg.LocalLoss(CLASSES))
    measured(mlp(), x, rule=sg.LocalLoss(CLASSES), context=y)


def test_several_optimizers_that_look_at_names() -> None:
    asked: list[list[str]] = []

    def optimizer(parameters: Any) -> list[torch.optim.Optimizer | None]:
        named = dict(parameters.named_parameters())
        asked.append(sorted(named))
        matrices = [p for p in parameters if p.ndim == 2]
        return [torch.optim.SGD(matrices, 0.1), None]

    measured(mlp(), batch()[0], optimizer=optimizer)
    assert asked == [["0.bias", "0.weight"], ["2.bias", "2.weight"], ["4.bias", "4.weight"]]


def test_nothing_of_the_users_changes() -> None:
    case = CASES["batchnorm"]
    model = case.model(torch.float32).eval()
    before = copy.deepcopy(model.state_dict())
    x, y = case.batch(dtype=torch.float32)
    state = torch.get_rng_state()
    measured(model, x, target=y, criterion=F.cross_entropy, rule=sg.SyntheticGradient(context=CLASSES))
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_weights_of_the_copy_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    nets: list[nn.Module] = []
    cut = profile._cut  # pyright: ignore[reportPrivateUsage]

    def kept(*args: Any) -> Any:
        found = cut(*args)
        nets.append(found[0].model)
        return found

    monkeypatch.setattr(profile, "_cut", kept)
    model = mlp()
    measured(model, batch()[0], optimizer=lambda p: torch.optim.SGD(p, 1e6), repeats=3)
    for ours, theirs in zip(nets[0].parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)  # so that a rate that would diverge does not


def test_a_model_in_evaluation_mode_is_measured_in_training_mode(ticks: type[Ticks]) -> None:
    class Dropped(Timed):
        def forward(self, x: Tensor) -> Tensor:
            Ticks.now += 64 * self.training
            return super().forward(x)

    model = Listed(Dropped(1, 1, 1), Timed(1, 1, 1)).eval()
    assert figures(measured(model, torch.ones(8, 2)), "forward_s") == [72, 8]


class Recomputed(Listed):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__(*(nn.Linear(6, 6) for _ in range(3)))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        for layer in self.layers[1:]:
            x = checkpoint(layer, x, use_reentrant=self.reentrant)  # type: ignore[assignment]
        return x


def test_checkpointing_inside_a_part() -> None:
    table = measured(Recomputed(reentrant=False), batch()[0])
    assert table.names == ["layers.0"]
    # Of the two layers above, and of the loss, the graph keeps the output and two inputs.
    assert figures(table, "held_bytes") == [16 * 6 * FLOAT, 3 * 16 * 6 * FLOAT]
    with pytest.raises(CutError, match="checkpointing with use_reentrant=True, which hides its parameters"):
        measured(Recomputed(reentrant=True), batch()[0])


def test_in_place_above_a_cut_and_autocast() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x).relu_())

    with torch.autocast("cpu", dtype=torch.bfloat16):
        table = measured(InPlace(), batch()[0], repeats=2, rule=sg.SyntheticGradient())
    assert figures(table, "output_bytes") == [16 * 6 * 2, 0]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"repeats": 0}, ConfigError, "repeats=0: expected the number of passes"),
        (
            {"rule": sg.SyntheticGradient},
            ConfigError,
            "rule=SyntheticGradient is a class, expected an object",
        ),
        ({"rule": nn.Linear(2, 2)}, ConfigError, "rule=.*: expected a rule"),
        ({"rule": "dni"}, ConfigError, "rule='dni': expected a rule"),
        ({"rule": lambda site: 3}, ConfigError, "rule=3: expected a rule"),
        ({"candidates": ["9"]}, CutError, "cannot cut after '9'"),
        ({"candidates": "1"}, CutError, "at='1': expected a list of names"),
        ({"candidates": []}, CutError, "no cut was given"),
        ({"candidates": ["0", "1"]}, ConfigError, "'1' has no parameters"),
        ({"criterion": lambda out, y: 3.0}, ConfigError, "the criterion returned 3.0, expected a tensor"),
        (
            {"criterion": lambda out, y: out},
            ConfigError,
            "the criterion returned .*: a scalar or the loss of each",
        ),
        ({"criterion": lambda out, y: out.detach().mean()}, ConfigError, "no gradient flows from the loss"),
        ({"optimizer": torch.optim.LBFGS}, ConfigError, "LBFGS needs a closure"),
        ({"optimizer": lambda p: 3}, ConfigError, "the optimizer factory returned 3"),
        (
            {"optimizer": torch.optim.Adam([nn.Parameter(torch.ones(1))])},
            ConfigError,
            "the optimizer factory failed",
        ),
    ],
)
def test_settings_that_are_wrong_are_refused_in_one_line(
    options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        measured(mlp(), batch()[0], **options)
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_learn_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="no gradient flows from the loss to a parameter: all of them are frozen"
    ):
        measured(mlp().requires_grad_(False), batch()[0])


def test_several_outputs_need_a_criterion() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            out = self.net(x)
            return out, out.square()

    model = Both()
    with pytest.raises(
        ConfigError, match="returns 2 floating tensors in a tuple and no loss; give a criterion"
    ):
        measured(model, batch()[0])
    table = measured(model, batch()[0], criterion=lambda out, y: (out[0] + out[1]).mean())
    assert table.names == ["net.1", "net.3"]


# -- times -----------------------------------------------------------------------------------------------------


def test_the_parts_take_about_as_long_as_the_whole() -> None:
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(6)))
    x = torch.randn(128, 256)
    table = measured(model, x, repeats=5)
    whole_s = []
    for _ in range(7):
        start = time.perf_counter()
        model(x).square().mean().backward()
        whole_s.append(time.perf_counter() - start)
        model.zero_grad()
    parts_s = sum(row.cost.forward_s + row.cost.backward_s for row in table.modules)
    assert min(whole_s) / 5 < parts_s < max(whole_s) * 5
    for below, above in pairwise(table.modules):
        assert below.cost.output_bytes == 128 * 256 * FLOAT
        assert above.cost.backward_s > 0

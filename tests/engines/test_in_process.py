from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import synthgrad as sg
from synthgrad.core import ConfigError, DivergedError, Monitor
from synthgrad.engines import InProcess, Lag, Locked
from tests.networks import CASES, CLASSES, Local


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.1)


def net_of(case: str = "linear", rule: sg.Rule | None = None) -> sg.core.Decoupled:
    made = CASES[case]
    return sg.decouple(made.model(), made.at, rule or sg.SyntheticGradient(context=CLASSES), made.batch()[0])


def test_in_process_differs_from_the_plain_loop_only_by_what_updates_first() -> None:
    """The first step is the same: every module has seen the same weights, and credit is zero."""
    nets = net_of(), net_of()
    x, y = CASES["linear"].batch()
    InProcess(nets[0], F.cross_entropy, sgd).step(x, y)
    Locked(nets[1], F.cross_entropy, sgd).step(x, y)
    for name, value in nets[0].state_dict().items():
        assert torch.allclose(value, nets[1].state_dict()[name]), name


def test_nothing_stays_behind_in_the_network() -> None:
    net = net_of("batchnorm")
    trainer = InProcess(net, F.cross_entropy, sgd)
    x, y = CASES["batchnorm"].batch()
    trainer.step(x, y)
    assert all(p.grad is None for p in net.parameters())
    F.cross_entropy(net(x, context=y), y).backward()  # the plain loop works on the same network
    assert all(p.grad is not None for p in net.parameters())


def test_a_parameter_of_two_modules_is_refused() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight
            self.head = nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.b(self.a(x)))

    net = sg.decouple(Tied(), ["a"], sg.NoBackprop(), torch.randn(3, 6))
    with pytest.raises(ConfigError, match="'a.weight' is used by two modules"):
        InProcess(net, F.cross_entropy, sgd)


def test_a_shared_parameter_within_a_module_trains() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight
            self.end = nn.Identity()
            self.head = nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.end(self.b(self.a(x).tanh())))

    net = sg.decouple(Tied(), ["end"], sg.SyntheticGradient(), torch.randn(3, 6))
    trainer = InProcess(net, F.cross_entropy, sgd)
    for _ in range(3):
        trainer.step(torch.randn(3, 6), torch.tensor([0, 1, 2]))
    assert sum(len(g["params"]) for o in trainer.optimizers for g in o.param_groups) == 3 + 2 + 2


def test_frozen_module_still_sends_messages_down() -> None:
    net = net_of("batchnorm")
    net.model[1].requires_grad_(False)  # type: ignore[index]
    frozen = {k: v.clone() for k, v in net.model[1].named_parameters()}  # type: ignore[index]
    trainer = InProcess(net, F.cross_entropy, lambda p: torch.optim.SGD(p, 0.5))
    for x, y in CASES["batchnorm"].batches(4):
        trainer.step(x, y)
    assert all(torch.equal(v, frozen[k]) for k, v in net.model[1].named_parameters())  # type: ignore[index]
    assert net.rules["0"].model.table.abs().max() > 0


def test_frozen_below_the_first_cut() -> None:
    net = net_of()
    net.model[0].requires_grad_(False)  # type: ignore[index]
    trainer = InProcess(net, F.cross_entropy, sgd)
    records = [trainer.step(x, y) for x, y in CASES["linear"].batches(3)]
    assert records[-1].updated == ["3", "output"]


def test_unused_parameters_are_left_alone() -> None:
    class Spare(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(6, 6), nn.Linear(6, CLASSES))
            self[0].register_parameter("spare", nn.Parameter(torch.ones(2)))

    net = sg.decouple(Spare(), ["0"], sg.NoBackprop(), torch.randn(3, 6))
    trainer = InProcess(net, F.cross_entropy, sgd)
    trainer.step(torch.randn(3, 6), torch.tensor([0, 1, 2]))
    assert net.model[0].spare.tolist() == [1, 1]  # type: ignore[index]


@pytest.mark.parametrize("engine", [InProcess, Locked])
def test_nan_in_data_stops_the_run_at_once(engine: Any) -> None:
    net = net_of()
    trainer = engine(net, F.cross_entropy, sgd)
    batches = CASES["linear"].batches(3)
    batches[2][0][0, 0] = float("nan")
    trainer.step(*batches[0])
    trainer.step(*batches[1])
    with pytest.raises(DivergedError, match="at step 2") as caught:
        trainer.step(*batches[2])
    assert caught.value.step == 2


def test_a_message_that_is_not_finite_names_its_interface() -> None:
    class Explodes(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            return grad / 0

    class Bad(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Explodes.apply(x)

    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), Bad(), nn.Linear(6, CLASSES))
    net = sg.decouple(model, ["0", "1"], sg.SyntheticGradient(), torch.randn(3, 6))
    with pytest.raises(DivergedError, match="interface '1' was not finite at step 0") as caught:
        InProcess(net, F.cross_entropy, sgd).step(torch.randn(3, 6), torch.tensor([0, 1, 2]))
    assert caught.value.where == "1"


def test_monitor_measures_true_agreement() -> None:
    from synthgrad.rules import record_messages

    case = CASES["linear"]
    model = case.model()
    optimizer = sgd(model.parameters())

    def step(net: nn.Module, x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    recording = record_messages(model, case.at, step, case.batches(3))
    monitor = Monitor(every=1)
    trainer = InProcess(net_of(rule=sg.Oracle(recording)), F.cross_entropy, sgd, monitor=monitor)
    for x, y in case.batches(3):
        trainer.step(x, y)
    for found in monitor.collect().values():
        assert found.cosine == pytest.approx(1, abs=1e-6)
        assert found.relative_error == pytest.approx(0, abs=1e-6)
        assert found.sign_agreement == 1


def test_rule_options_make_a_group_of_their_own() -> None:
    adam = lambda p: torch.optim.Adam(p, 1e-3)  # noqa: E731
    trainer = InProcess(net_of(), F.cross_entropy, adam, rule_options={"lr": 1e-2})
    assert [[g["lr"] for g in o.param_groups] for o in trainer.optimizers] == [
        [1e-3],
        [1e-3, 1e-2],
        [1e-3, 1e-2],
    ]


@pytest.mark.parametrize(
    ("options", "match"),
    [({"update_prob": 0.0}, "over 0"), ({"update_prob": 1.5}, "up to 1")],
)
def test_settings_out_of_range(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        InProcess(net_of(), F.cross_entropy, sgd, **options)


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match="expected what synthgrad.decouple returned"):
        InProcess(nn.Linear(2, 2), F.cross_entropy, sgd)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected a torch.optim.Optimizer"):
        InProcess(net_of(), F.cross_entropy, lambda p: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigError, match="error_to_h=False"):
        InProcess(net_of(rule=sg.SyntheticGradient(error_to_h=True)), F.cross_entropy, sgd)


def test_input_as_a_tuple_of_arguments() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, CLASSES)

        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.b(self.a(x) * scale)

    x, scale, y = torch.randn(5, 3), torch.ones(1), torch.arange(5) % CLASSES
    net = sg.decouple(Two(), ["a"], sg.SyntheticGradient(context=CLASSES), (x, scale))
    record = InProcess(net, F.cross_entropy, sgd).step((x, scale), y)
    assert record.updated == ["a", "output"]


def test_bfloat16_autocast_learns() -> None:
    case = CASES["linear"]
    x, y = case.batch(dtype=torch.float32)
    net = sg.decouple(case.model(torch.float32), case.at, sg.SyntheticGradient(context=CLASSES), x)
    trainer = InProcess(net, F.cross_entropy, lambda p: torch.optim.Adam(p, 1e-2))
    losses: list[float] = []
    for _ in range(40):
        with torch.autocast("cpu", torch.bfloat16):
            loss = trainer.step(x, y).loss
        assert loss is not None
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_rule_with_its_own_loss_learns_with_the_module_below_it() -> None:
    """Though nothing above has run yet: a lag of three steps has not filled."""
    net = net_of(rule=Local())
    before = {k: v.clone() for k, v in net.rules.named_parameters()}
    trainer = InProcess(net, F.cross_entropy, sgd, lags={"1": Lag(forward=3)})
    record = trainer.step(*CASES["linear"].batch())
    assert record.updated == ["1"]
    changed = {k for k, v in net.rules.named_parameters() if not torch.equal(v, before[k])}
    assert changed == {"1.head.weight", "1.head.bias"}


def test_rule_with_its_own_loss_equals_the_same_by_hand() -> None:
    case = CASES["linear"]
    net, twin = net_of(rule=Local()), net_of(rule=Local())
    trainer = InProcess(net, F.cross_entropy, sgd)
    model = twin.model
    parts = [model[:2], model[2:4], model[4:]]  # type: ignore[index,operator]
    heads = [twin.rules["1"].head, twin.rules["3"].head]  # type: ignore[union-attr]
    twin.load_state_dict(net.state_dict())
    for x, y in case.batches(4):
        trainer.step(x, y)
        h = x
        for k, part in enumerate(parts):
            h = part(h.detach())
            scores = heads[k](h) if k < 2 else h
            learning = [*part.parameters(), *(heads[k].parameters() if k < 2 else ())]
            optimizer = sgd(learning)
            optimizer.zero_grad()
            F.cross_entropy(scores, y).backward()
            optimizer.step()
    for name, value in net.state_dict().items():
        assert torch.allclose(value, twin.state_dict()[name]), name


def test_a_step_that_fails_leaves_nothing_for_the_next() -> None:
    class Fails(sg.SyntheticGradient):
        fail = False

        def observe_grad(self, *args: Any) -> Any:
            if self.fail:
                raise RuntimeError("out of luck")
            return super().observe_grad(*args)

    net = net_of(rule=Fails(context=CLASSES))
    trainer = InProcess(net, F.cross_entropy, sgd)
    x, y = CASES["linear"].batch()
    trainer.step(x, y)
    net.interfaces["1"].rule.fail = True  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.step(x, y)
    assert all(p.grad is None for p in net.parameters())


def test_a_monitor_does_not_ask_for_messages_that_nobody_compares() -> None:
    """No-bprop has no credit to compare: its modules must not pay for the gradient of their input."""
    net = net_of(rule=sg.NoBackprop())
    fed: list[bool] = []
    net.model[4].register_forward_pre_hook(lambda m, args: fed.append(args[0].requires_grad))  # type: ignore[index]
    InProcess(net, F.cross_entropy, sgd, monitor=Monitor(every=1)).step(*CASES["linear"].batch())
    assert fed == [False]


@pytest.mark.parametrize("rule", [sg.SyntheticGradient(), sg.NoBackprop()], ids=lambda r: type(r).__name__)
def test_a_step_holds_no_more_activations_and_credits_the_deeper_the_network(rule: sg.Rule) -> None:
    def most_held(depth: int) -> int:
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(depth)))
        x = torch.randn(3, 4)
        net = sg.decouple(model, [str(k) for k in range(depth - 1)], rule, x)
        trainer = InProcess(net, F.mse_loss, sgd)
        seen: list[StorageWeakRef] = []
        held: list[int] = []

        def count(credit: Any, h: Tensor, info: Any) -> Any:
            held.append(sum(not storage.expired() for storage in seen))
            given = credit(h, info)
            seen.extend(StorageWeakRef(t.untyped_storage()) for t in (h, given.delta) if t is not None)
            return given

        for interface in net.interfaces.values():
            interface.rule.credit = partial(count, interface.rule.credit)  # type: ignore[method-assign]
        for _ in range(3):
            trainer.step(x, x)
        assert len(held) == 3 * (depth - 1)
        return max(held)

    assert most_held(12) == most_held(6) > 0


class Checkpointed(nn.Module):
    """A block that runs again in backward, in one of PyTorch's two ways."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, x, use_reentrant=self.reentrant)


def test_parameters_that_checkpointing_hides_are_not_silently_left_untrained() -> None:
    x = torch.randn(3, 4)

    def made(*, reentrant: bool) -> sg.core.Decoupled:
        model = nn.Sequential(nn.Linear(4, 4), Checkpointed(reentrant=reentrant), nn.Linear(4, 4))
        return sg.decouple(model, ["0", "1"], sg.SyntheticGradient(), x)

    with pytest.raises(ConfigError, match="module '1' runs a part under activation checkpointing"):
        InProcess(made(reentrant=True), F.mse_loss, sgd)
    net = made(reentrant=False)
    before = {name: p.clone() for name, p in net.model.named_parameters()}
    trainer = InProcess(net, F.mse_loss, sgd)
    for _ in range(3):
        trainer.step(x, x)
    assert not [n for n, p in net.model.named_parameters() if torch.equal(p, before[n])]


def test_a_loss_scale_is_refused_where_no_loss_is_scaled() -> None:
    case = CASES["linear"]
    net = sg.decouple(
        case.model(), case.at, sg.SyntheticGradient(), case.batch()[0], loss_scale=lambda: 128.0
    )
    with pytest.raises(ConfigError, match="decoupled with loss_scale"):
        InProcess(net, F.cross_entropy, sgd)

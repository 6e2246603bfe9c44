"""`check_rule` names the clause that a rule breaks, and says nothing of one that keeps them all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, Credit, Info, Message, Rule, Site
from synthgrad.testing import CLAUSES, ContractError, check_rule
from tests.networks import CASES


class Right(Rule):
    """A linear synthetic gradient."""

    def build(self, site: Site) -> None:
        self.linear = nn.Linear(site.shape[1], site.shape[1])
        nn.init.zeros_(self.linear.weight)

    def credit(self, h: Tensor, info: Info) -> Credit:
        prediction = self.linear(h.detach())
        return Credit(prediction.detach(), pending=(prediction,))

    def observe(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()
    ) -> Tensor | None:
        (prediction,) = pending or self.credit(h, info).pending
        return (prediction - message.gradient).square().sum() / len(h)


class Shared(Right):
    def bind(self, site: Site) -> Any:
        self.name = site.name
        if not hasattr(self, "linear"):
            self.build(site)
        return self.to(site.dtype)


class SharedParameter(Right):
    layer = nn.Linear(7, 7).double()

    def build(self, site: Site) -> None:
        self.linear = SharedParameter.layer


class Attached(Right):
    def credit(self, h: Tensor, info: Info) -> Credit:
        made = super().credit(h, info)
        return replace(made, delta=made.pending[0])


class OtherShape(Right):
    def credit(self, h: Tensor, info: Info) -> Credit:
        return Credit(torch.zeros(len(h), dtype=h.dtype))


class OtherType(Right):
    def credit(self, h: Tensor, info: Info) -> Credit:
        made = super().credit(h, info)
        return replace(made, delta=made.pending[0].detach().float())


class InPlace(Right):
    def credit(self, h: Tensor, info: Info) -> Credit:
        with torch.no_grad():
            h.mul_(2)
        return super().credit(h, info)


class Learning(Right):
    """Changes its parameters when it is asked."""

    def credit(self, h: Tensor, info: Info) -> Credit:
        made = super().credit(h, info)
        with torch.no_grad():
            self.linear.bias.add_(1)
        return made


class WaitsUnsaid(Right):
    def credit(self, h: Tensor, info: Info) -> Credit:
        return Credit(None, wait=True)


class Leaking(Right):
    def observe(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()
    ) -> Tensor | None:
        prediction = pending[0] if pending else self.linear(h)
        return (prediction - message.gradient).square().sum() / len(h)


class OtherWithoutPending(Right):
    def observe(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()
    ) -> Tensor | None:
        loss = super().observe(h, info, message, pending)
        return loss if pending or loss is None else 2 * loss


class Vector(Right):
    def observe(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()
    ) -> Tensor | None:
        (prediction,) = pending or self.credit(h, info).pending
        return (prediction - message.gradient).square().sum(1)


class WrongFormula(Right):
    def observe_grad(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...]
    ) -> tuple[Tensor | None, ...] | None:
        return ((pending[0].detach() - message.gradient) / len(h),)


class Summed(Right):
    def observe(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()
    ) -> Tensor | None:
        (prediction,) = pending or self.credit(h, info).pending
        return (prediction - message.gradient).square().sum()


class Divided(Right):
    """Gives the gradient of the mean, not of each example's own loss."""

    def credit(self, h: Tensor, info: Info) -> Credit:
        prediction = self.linear(h.detach())
        return Credit(prediction.detach() / len(h), pending=(prediction,))


class Forgetful(Right):
    """Keeps what it learns where no state dict sees it."""

    def build(self, site: Site) -> None:
        super().build(site)
        self.memory = torch.zeros(site.shape[1], dtype=site.dtype)

    def credit(self, h: Tensor, info: Info) -> Credit:
        made = super().credit(h, info)
        return replace(made, delta=made.pending[0].detach() + self.memory)

    def observe(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()
    ) -> Tensor | None:
        self.memory = message.gradient.mean(0)
        return super().observe(h, info, message, pending)


class Single(Right):
    """Is in float32, whatever the network is in."""

    def bind(self, site: Site) -> Any:
        return super().bind(site).float()

    def credit(self, h: Tensor, info: Info) -> Credit:
        prediction = self.linear(h.detach().float()).to(h.dtype)
        return Credit(prediction.detach(), pending=(prediction,))


class Staying(Right):
    """Does not follow the network to another device."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return self if hasattr(self, "stays") else super()._apply(fn, recurse)

    def bind(self, site: Site) -> Any:
        bound = super().bind(site)
        bound.stays = True
        return bound


class Restless(Right):
    """Differs from run to run: it counts what has ever been asked of any rule."""

    asked = 0

    def credit(self, h: Tensor, info: Info) -> Credit:
        Restless.asked += 1
        made = super().credit(h, info)
        return replace(made, delta=made.pending[0].detach() + 0.01 * Restless.asked)


class Counting(Right):
    """Counts batches where no state dict sees it; what it says depends on their number."""

    def build(self, site: Site) -> None:
        super().build(site)
        self.count = 0

    def observe(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()
    ) -> Tensor | None:
        self.count += 1
        loss = super().observe(h, info, message, pending)
        return None if loss is None else loss * self.count


class Punctual(Right):
    """Knows one prediction only: that of the last batch that it was asked about."""

    def credit(self, h: Tensor, info: Info) -> Credit:
        made = super().credit(h, info)
        self.step = info.step
        return made

    def observe(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()
    ) -> Tensor | None:
        assert info.step == self.step, "this message is late"
        return super().observe(h, info, message, pending)


class Balanced(Right):
    """Refuses to be asked twice before it has been told."""

    open = False

    def credit(self, h: Tensor, info: Info) -> Credit:
        if self.training and self.open and torch.is_grad_enabled() and info.step == 3:
            raise RuntimeError("asked twice")
        self.open = True
        return super().credit(h, info)

    def observe(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()
    ) -> Tensor | None:
        found = super().observe(h, info, message, pending)
        self.open = False
        return found


class Deaf(Right):
    """Has parameters, and never learns."""

    def observe(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()
    ) -> Tensor | None:
        return None


class DirectFeedback(Rule):
    """Direct feedback alignment."""

    listens, waits, needs_output_error = False, True, True

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def build(self, site: Site) -> None:
        self.register_buffer("feedback", torch.randn(self.outputs, *site.shape[1:]))

    def credit(self, h: Tensor, info: Info) -> Credit:
        return Credit(None, wait=True)

    def accept(self, message: Message, info: Info) -> Tensor:
        assert message.output_error is not None
        return torch.tensordot(message.output_error, self.feedback, 1)  # type: ignore[arg-type]


BROKEN: list[tuple[Callable[[], Rule], str, str]] = [
    (Shared, "copies", "returned the rule itself"),
    (SharedParameter, "copies", "share a parameter"),
    (Attached, "credit", "attached to a graph"),
    (OtherShape, "credit", r"delta is \(8,\) torch.float64 .* expected that of h: \(8, 7\)"),
    (OtherType, "credit", "delta is .* torch.float32"),
    (InPlace, "credit", "changed h in place"),
    (Learning, "credit", "changed the rule's parameters"),
    (WaitsUnsaid, "credit", "waits = False"),
    (Leaking, "observation", "reaches h"),
    (OtherWithoutPending, "observation", "with pending and .* without"),
    (Vector, "observation", "expected a scalar"),
    (WrongFormula, "observation", "not the gradient of observe"),
    (Summed, "units", "the mean over examples"),
    (Divided, "units", "not divided by the batch size"),
    (Forgetful, "state dict", "gives another credit"),
    (Single, "dtype", "torch.float32 in a network of torch.float64"),
    (Staying, "device", "stays on cpu when the network moves to meta"),
    (Restless, "determinism", "with one seed"),
    (Counting, "resume", "differs"),
    (Punctual, "late messages", "this message is late"),
    (Balanced, "missing messages", "asked twice"),
    (Deaf, "engines agree", "nothing of the rule at '0' has changed"),
]


@pytest.mark.parametrize(("make", "clause", "said"), BROKEN, ids=[make.__name__ for make, *_ in BROKEN])
def test_a_broken_rule_is_told_which_clause_it_breaks(
    make: Callable[[], Rule], clause: str, said: str
) -> None:
    with pytest.raises(ContractError, match=said) as caught:
        check_rule(make, clauses=[clause])
    assert caught.value.clause == clause
    assert f"clause '{clause}'" in str(caught.value)


@pytest.mark.parametrize("make", [Right, lambda: DirectFeedback(10)], ids=["synthetic", "direct feedback"])
def test_a_rule_of_ones_own_that_is_right_passes_and_draws_nothing(make: Callable[[], Rule]) -> None:
    before = torch.get_rng_state()
    check_rule(make)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_rule_may_be_given_as_an_object_and_with_a_network_for_it() -> None:
    case = CASES["conv"]
    rule = sg.SyntheticGradient((4,), context=5)
    check_rule(rule, model=case.model(), at=case.at, batches=case.batches(6))
    with pytest.raises(ContractError, match="clause 'stages'.*differs"):
        check_rule(Asymmetric(), clauses=["stages"])


class Asymmetric(Right):
    """Counts how often it exists in this process: stages in their own processes would each count anew."""

    def credit(self, h: Tensor, info: Info) -> Credit:
        made = super().credit(h, info)
        late = 1.0 if made.pending and info.inputs is not None else 2.0  # upper stages do not know the input
        return replace(made, delta=made.pending[0].detach() * late + late)


def test_what_is_no_rule_or_no_clause_is_told() -> None:
    with pytest.raises(ConfigError, match="expected a rule"):
        check_rule(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected some of"):
        check_rule(Right(), clauses=["speed"])
    with pytest.raises(ConfigError, match="give all three"):
        check_rule(Right(), at=["0"])
    with pytest.raises(ContractError, match="expected a rule"):
        check_rule(lambda: F.relu)  # type: ignore[arg-type,return-value]
    with pytest.raises(ContractError, match=r"class index . expected 0 to 2|expected 0 to 2"):
        check_rule(sg.SyntheticGradient(context=3))


def test_all_clauses_are_tried_unless_some_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    noted = {name: lambda subject, name=name: tried.append(name) for name in CLAUSES}
    monkeypatch.setattr("synthgrad.testing.contract.CLAUSES", noted)
    check_rule(Right())
    assert tried == list(CLAUSES)


def test_it_needs_pytorch_alone() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None; import synthgrad as sg; "
        "sg.testing.check_rule(sg.NoBackprop(), clauses=['credit', 'stages']); "
        "print([m for m in ('numpy', 'hypothesis', 'synthgrad.lab') if m in sys.modules and m != 'numpy'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[]\n", "")

"""Modules of any network run alone: what lies below is absent, and what crosses beside the message is refused."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, CutError, Decoupled, ShapeError
from synthgrad.engines import InProcess, Lag, LayerParallel
from synthgrad.engines.parts import ForwardPart, SequencePart, split_network
from synthgrad.engines.parts.absent import AbsentScope, make_absent


class Masked(nn.Module):
    """A mask made of the input is used below the cut and above it."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.low, self.norm = nn.Embedding(20, 8), nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.top = nn.Linear(8, 3)

    def forward(self, ids: Tensor, scale: Tensor | None = None) -> Tensor:
        keep = (ids > 0).to(torch.get_default_dtype())[..., None]
        h = torch.tanh(self.low(self.emb(ids))) * keep
        h = self.norm(h.transpose(1, 2)).transpose(1, 2)
        if scale is not None:
            h = h * scale[:, None, None]
        return self.top(F.dropout((h * keep).sum(1) / ids.shape[0], 0.3, self.training))


class Sized(nn.Module):
    """Reads the size of the batch as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.low, self.top = nn.Parameter(torch.randn(1, 1, 6)), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.low(torch.cat([self.token.expand(x.shape[0], -1, -1), x[:, None]], 1))
        return self.top(torch.tanh(h - h.sum(0) / x.shape[0]).sum(1))


def chained(net: Decoupled, *args: Any, seed: int = 5, **kwargs: Any) -> Tensor:
    """Run the parts one after the other."""
    parts = split_network(net)
    assert parts[0].inputs is not None
    tensors = parts[0].inputs.tensors((args, kwargs))
    torch.manual_seed(seed)
    h: Any = None
    for part in parts:
        h = part(h, tensors)
    return h


def whole(net: Decoupled, *args: Any, seed: int = 5, **kwargs: Any) -> Tensor:
    torch.manual_seed(seed)
    return net.model(*args, **kwargs)


def ids_of(size: int, length: int = 5) -> Tensor:
    return torch.randint(0, 20, (size, length))


@pytest.mark.parametrize("size", [6, 3, 2])
def test_parts_give_the_networks_output_for_other_sizes_and_in_both_modes(size: int) -> None:
    net = sg.decouple(Masked(), ["low", "norm"], sg.NoBackprop(), ids_of(6))
    ids = ids_of(size, 4)
    for mode in (True, False):
        for part in (net, *net.model.modules()):
            part.training = mode
        buffers = {n: b.clone() for n, b in net.model.named_buffers()}
        expected = whole(net, ids)
        after = {n: b.clone() for n, b in net.model.named_buffers()}
        for n, b in net.model.named_buffers():
            b.copy_(buffers[n])
        assert torch.equal(chained(net, ids), expected)
        for n, b in net.model.named_buffers():
            assert torch.equal(b, after[n]), n  # each part's statistics once, and no other's


def test_inputs_travel_only_where_their_values_are_needed() -> None:
    masked = split_network(sg.decouple(Masked(), ["low"], sg.NoBackprop(), ids_of(6)))
    assert [form.needed for form in masked[1].inputs.tensor_specs] == [True]  # type: ignore[union-attr]
    sized = split_network(sg.decouple(Sized(), ["low"], sg.NoBackprop(), torch.randn(6, 6)))
    assert [form.needed for form in sized[1].inputs.tensor_specs] == [False]  # type: ignore[union-attr]


def test_a_part_has_its_own_parameters_and_computes_none_of_the_others() -> None:
    net = sg.decouple(Sized(), ["low"], sg.NoBackprop(), torch.randn(6, 6))
    lower, upper = split_network(net)
    assert isinstance(upper.module, ForwardPart)
    assert dict(upper.module.named_parameters()).keys() == {"top_weight", "top_bias"}
    assert {id(p) for p in lower.module.parameters()} == {
        id(net.model.get_parameter(n)) for n in ("token", "low.weight", "low.bias")
    }
    with torch.no_grad():
        net.model.low.weight.fill_(float("nan"))  # type: ignore[union-attr,operator]
    x, h = torch.randn(4, 6), torch.randn(4, 2, 8)
    assert upper(h, [x]).isfinite().all()
    assert isinstance(net.model.low.weight, nn.Parameter), "put back afterwards"  # type: ignore[union-attr]


def test_keywords_and_several_inputs() -> None:
    example = {"ids": ids_of(6), "scale": torch.rand(6)}
    net = sg.decouple(Masked(), ["low"], sg.NoBackprop(), example)
    batch = {"ids": ids_of(4), "scale": torch.rand(4)}
    assert torch.equal(chained(net, **batch), whole(net, **batch))
    inputs = split_network(net)[0].inputs
    assert inputs is not None
    for passed in (((), {"ids": ids_of(4)}), ((ids_of(4),), {}), ((), {"ids": ids_of(4), "scale": None})):
        with pytest.raises(ShapeError, match="in the example"):
            inputs.tensors(passed)
    with pytest.raises(ShapeError, match=r"has 2 dimensions of torch.float32, and had 2 of torch.int64"):
        inputs.tensors(((), {"ids": ids_of(4).float(), "scale": torch.rand(4)}))


def test_a_sequential_is_taken_apart_as_it_is() -> None:
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(6, 6), act, nn.Linear(6, 6), act, nn.Linear(6, 3))
    x = torch.randn(5, 6)
    parts = split_network(sg.decouple(model, ["2"], sg.NoBackprop(), x))
    assert [type(part.module) for part in parts] == [SequencePart] * 2
    assert [len(part.module) for part in parts] == [3, 2]  # type: ignore[arg-type]
    assert torch.equal(parts[1](parts[0](None, [x]), []), model(x))


class Doubled(nn.Sequential):
    """Looks like a Sequential and is none."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def test_a_container_with_a_hook_or_a_forward_of_its_own_keeps_it() -> None:
    inner = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    inner.register_forward_hook(lambda m, a, out: out * 3)
    for first in (inner, Doubled(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))):
        model = nn.Sequential(first, nn.Linear(6, 3))
        x = torch.randn(5, 6)
        net = sg.decouple(model, ["0.0"], sg.NoBackprop(), x)
        assert isinstance(split_network(net)[0].module, ForwardPart)
        assert torch.equal(chained(net, x), model(x))


class Dropping(nn.Module):
    """Draws numbers of its own below the cut (DropPath) and above it; or uses one draw on both sides."""

    def __init__(self, *, shared: bool) -> None:
        super().__init__()
        self.low, self.top, self.shared = nn.Linear(6, 8), nn.Linear(8, 3), shared

    def forward(self, x: Tensor) -> Tensor:
        keep = (torch.rand(x.shape[0], 1) > 0.4).to(x.dtype)
        scale = 1 if random.random() < 0.5 else 2
        h = torch.tanh(self.low(x * keep * scale))
        return self.top(F.dropout(h * keep if self.shared else h, 0.5, self.training))


def test_random_numbers_below_a_part_are_not_its_own() -> None:
    x = torch.randn(16, 6)
    net = sg.decouple(Dropping(shared=False), ["low"], sg.NoBackprop(), x)
    random.seed(1)
    expected = whole(net, x)
    random.seed(1)
    assert torch.equal(chained(net, x), expected)


def test_a_draw_that_is_used_on_both_sides_of_a_cut_is_refused() -> None:
    net = sg.decouple(Dropping(shared=True), ["low"], sg.NoBackprop(), torch.randn(16, 6))
    with pytest.raises(CutError, match="do not give its own output"):
        split_network(net)


class Beside(nn.Module):
    """Something without a gradient, made of the weights below the cut, is used above it."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.low, self.mid, self.top = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        if self.what == "choice" and low.mean() > 1e6:
            low = -low
        h = self.mid(torch.tanh(low))
        return self.top(h * (low.detach() > 0) if self.what == "gate" else h)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("gate", r"uses a tensor that the stage below \(module 'mid'\) makes of its weights"),
        ("choice", "its code needs the values of what it has computed"),
    ],
)
def test_what_crosses_beside_the_message_is_refused(what: str, says: str) -> None:
    net = sg.decouple(Beside(what), ["mid"], sg.NoBackprop(), torch.randn(6, 6))
    with pytest.raises(CutError, match=says) as caught:
        split_network(net)
    assert "\n" not in str(caught.value)


def test_parts_that_do_not_give_the_networks_output_are_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    net = sg.decouple(model, ["1"], sg.NoBackprop(), torch.randn(6, 6))
    net.model[2].register_forward_hook(lambda m, a, out: out + torch.rand((), generator=_UNSEEDED))  # type: ignore[index,union-attr]
    with pytest.raises(CutError, match="do not give its own output"):
        split_network(net)


_UNSEEDED = torch.Generator()


def test_absent_tensors_know_shapes_and_nothing_else() -> None:
    scope = AbsentScope("the stage below", "cut")
    weight = make_absent(torch.randn(8, 6), scope)
    h = F.gelu(F.linear(torch.randn(4, 6), weight))
    assert h.shape == (4, 8)
    assert h.device.type == "cpu"
    assert torch.equal(h.new_zeros(2), torch.zeros(2)), "of known values"
    assert h[torch.tensor([True, False, True, True])].shape == (3, 8), "a mask that is here"
    out = torch.zeros(4, 8)
    with pytest.raises(CutError, match="writes into a tensor that has values"):
        out.add_(h)
    with pytest.raises(CutError, match="needs the values"):
        bool(h.sum() > 0)
    scope.open = False
    with pytest.raises(CutError, match="does not pass through the cut 'cut'"):
        h + 1


# Modules on different batches


def test_forward_lags_want_nothing_beside_the_message() -> None:
    sgd = lambda p: torch.optim.SGD(p, 0.1)  # noqa: E731
    net = sg.decouple(Masked(), ["low"], sg.NoBackprop(), ids_of(6))
    with pytest.raises(ConfigError, match="above a cut the network uses something computed from"):
        InProcess(net, F.cross_entropy, sgd, lags={"low": Lag(1)})
    InProcess(net, F.cross_entropy, sgd, lags={"low": Lag(observe=1)})
    sized = sg.decouple(Sized(), ["low"], sg.NoBackprop(), torch.randn(6, 6))
    trainer = InProcess(sized, F.cross_entropy, sgd, lags={"low": Lag(1)})
    trainer.step(torch.randn(6, 6), torch.randint(3, (6,)))
    with pytest.raises(ShapeError, match="batches of 6 and 4 examples meet"):
        trainer.step(torch.randn(4, 6), torch.randint(3, (4,)))


def test_layer_parallel_learns_with_shared_activations_what_it_learns_with_own_ones() -> None:
    x, y = torch.randn(12, 8), torch.randint(0, 8, (12,))
    found: list[Tensor] = []
    for shared in (False, True):
        torch.manual_seed(0)

        def block(shared: bool = shared) -> nn.Module:
            act = nn.ReLU()
            return nn.Sequential(nn.Linear(8, 8), act, nn.Linear(8, 8), act if shared else nn.ReLU())

        model = nn.Sequential(block(), block(), block(), nn.Linear(8, 8))
        net = sg.decouple(model, ["0", "1", "2"], sg.SyntheticGradient(context=8), x)
        trainer = LayerParallel(net, F.cross_entropy, lambda p: torch.optim.SGD(p, 0.1))
        for _ in range(8):
            trainer.step(x, y)
        found.append(torch.cat([p.detach().flatten() for p in net.model.parameters()]))
    assert torch.equal(*found)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.a(h) + self.b(h)


def test_branches_are_refused() -> None:
    net = sg.decouple(TwoHeads(), ["stem", "a"], sg.NoBackprop(), torch.randn(6, 6))
    with pytest.raises(ConfigError, match="not a chain"):
        split_network(net)

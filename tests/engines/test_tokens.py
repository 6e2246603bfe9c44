"""Losses over tokens with ragged labels: with the true gradient every engine is backpropagation, and messages are right.

Stages are in ``stages/test_stages_tokens.py``.
"""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, ContextError, DivergedError, Guard, Monitor, Rule, ShapeError
from synthgrad.engines import Boundary, Clocked, InProcess, Lag, LayerParallel, Locked, Recurrent
from synthgrad.engines.clocked import Edge, Node
from synthgrad.rules import HandOver, Oracle, Recording, TrueGradient, heads, record_messages
from tests.engines.token_toys import (
    CUTS,
    NONE,
    B,
    Heard,
    V,
    assert_heard,
    assert_measured,
    assert_weights,
    backprop,
    batches,
    by_example,
    decoupled,
    model,
    over_tokens,
    sgd,
    still,
)

STEPS = 4


def recorded() -> Oracle:
    net = model()
    optimizer = sgd(net.parameters())

    def step(net: nn.Module, x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        over_tokens(net(x), y).backward()
        optimizer.step()

    return Oracle(record_messages(net, CUTS, step, batches(STEPS + len(CUTS)), "tokens"))


# -- with the true gradient ---------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", [over_tokens, by_example])
@pytest.mark.parametrize("rule", [TrueGradient, recorded])
@pytest.mark.parametrize("engine", [Locked, InProcess])
def test_engines_are_backpropagation(engine: Any, rule: Any, criterion: Any) -> None:
    net = decoupled(rule())
    trainer = engine(net, criterion, sgd)
    for x, y in batches(STEPS):
        trainer.step(x, y)
    assert_weights(net.model, backprop(STEPS)[-1])


def test_a_plain_loop_is_backpropagation() -> None:
    net = decoupled(TrueGradient())
    optimizer = sgd(net.parameters())
    for x, y in batches(STEPS):
        optimizer.zero_grad()
        over_tokens(net(x, context=y), y).backward()
        optimizer.step()
    assert_weights(net.model, backprop(STEPS)[-1])


@pytest.mark.parametrize("criterion", [over_tokens, by_example])
def test_layer_parallel_is_backpropagation(criterion: Any) -> None:
    """Every module works on the batches in order, each on its own: with recorded messages it is some batches behind."""
    net = decoupled(recorded())
    trainer = LayerParallel(net, criterion, sgd)
    history = backprop(STEPS + len(CUTS))
    for x, y in batches(STEPS + len(CUTS)):
        trainer.step(x, y)
    for prefix, behind in (
        ("embedding", 0),
        ("block1", 0),
        ("block2", 1),
        ("block3", 2),
        ("block4", 3),
        ("output", 3),
    ):
        assert_weights(net.model, history[STEPS + len(CUTS) - behind], prefix)


def test_the_losses_of_examples_are_reduced_as_the_criterion_would() -> None:
    x, y = batches(1)[0]
    expected = over_tokens(model()(x), y).item()
    for engine in (Locked, InProcess):
        record = engine(decoupled(TrueGradient()), by_example, sgd).step(x, y)
        assert record.loss == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("lag", [1, 3])
def test_a_run_with_messages_in_flight_is_resumed_with_the_shares_of_their_batches(lag: int) -> None:
    def trained(save_at: int | None) -> nn.Module:
        lags = {name: Lag(observe=lag) for name in CUTS}
        net = decoupled(TrueGradient())
        trainer = InProcess(net, by_example, sgd, lags=lags)
        for k, (x, y) in enumerate(batches(8)):
            if k == save_at:
                kept = io.BytesIO()
                torch.save([net.state_dict(), trainer.state_dict()], kept)
                kept.seek(0)
                states = torch.load(kept, weights_only=False)
                net = decoupled(TrueGradient())
                trainer = InProcess(net, by_example, sgd, lags=lags)
                net.load_state_dict(states[0])
                trainer.load_state_dict(states[1])
            trainer.step(x, y)
        return net.model

    whole, resumed = trained(None), trained(5)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


# -- messages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", [over_tokens, by_example])
@pytest.mark.parametrize("engine", [Locked, InProcess])
def test_rules_hear_the_gradient_of_the_mean_over_an_examples_labels(engine: Any, criterion: Any) -> None:
    net, monitor = decoupled(Heard()), Monitor(every=1)
    settings: dict[str, Any] = {"monitor": monitor} if engine is InProcess else {}
    trainer = engine(net, criterion, still, **settings)
    if engine is Locked:
        net.monitor = monitor
    for x, y in batches(STEPS):
        trainer.step(x, y)
    assert {len(i.rule.messages) for i in net.interfaces.values()} == {STEPS}  # type: ignore[arg-type]
    assert_heard(net, STEPS)
    assert_measured(monitor.collect(), STEPS)
    if engine is InProcess and criterion is by_example:
        x, y = batches(1)[0]
        top: Any = net.interfaces[CUTS[-1]].rule
        torch.testing.assert_close(top.losses[0], by_example(model()(x), y))


@pytest.mark.parametrize("lags", [Lag(observe=2), Lag(forward=1), Lag(forward=2, observe=1)])
def test_late_messages_have_the_shares_of_their_own_batch(lags: Lag) -> None:
    net = decoupled(Heard())
    trainer = InProcess(net, over_tokens, still, lags=dict.fromkeys(CUTS, lags))
    for x, y in batches(9):
        trainer.step(x, y)
    assert min(len(i.rule.messages) for i in net.interfaces.values()) >= 1  # type: ignore[arg-type]
    assert_heard(net, 9)


@pytest.mark.parametrize("criterion", [over_tokens, by_example])
@pytest.mark.parametrize("observe", [0, 2])
def test_layer_parallel_rules_hear_it_too(observe: int, criterion: Any) -> None:
    net, monitor = decoupled(Heard()), Monitor(every=1)
    trainer = LayerParallel(net, criterion, still, observe=observe, monitor=monitor)
    steps = STEPS + len(CUTS) + observe
    for x, y in batches(steps):
        trainer.step(x, y)
    heard: list[Any] = [net.interfaces[name].rule for name in CUTS]
    assert all(len(rule.messages) >= STEPS for rule in heard)
    assert_heard(net, steps)
    if not observe and criterion is over_tokens:
        # The first interface has heard of all batches but the last.
        assert_measured(monitor.collect(), steps - 1, CUTS[:1])


RULES: dict[str, Any] = {
    "local loss": lambda: sg.LocalLoss(V, heads.token_head()),
    "synthetic gradient": lambda: sg.SyntheticGradient((7,)),
    "hand-over": lambda: HandOver(sg.SyntheticGradient(), warm_up=0),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("criterion", [over_tokens, by_example])
def test_layer_parallel_is_the_in_process_engine(rule: str, criterion: Any) -> None:
    one = decoupled(RULES[rule]())
    other = copy.deepcopy(one)
    engine = LayerParallel(one, criterion, sgd, observe=1)
    reference = InProcess(other, criterion, sgd, lags=engine.lags)
    for k, (x, y) in enumerate(batches(10)):
        if k == 6:  # a resume in between
            state = copy.deepcopy(engine.state_dict())
            kept = copy.deepcopy(one.state_dict())
            one = decoupled(RULES[rule]())
            one.load_state_dict(kept)
            engine = LayerParallel(one, criterion, sgd, observe=1)
            engine.load_state_dict(state)
        engine.step(x, y)
        reference.step(x, y)
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def test_networks_side_by_side_have_labels_of_their_own() -> None:
    nets = [decoupled(sg.SyntheticGradient((7,))) for _ in range(2)]
    alone = copy.deepcopy(nets)
    together = LayerParallel(nets, over_tokens, sgd)
    apart = [LayerParallel(net, over_tokens, sgd) for net in alone]
    data = [batches(7, seed=3), batches(7, seed=4)]
    for (x, y), (v, w) in zip(*data, strict=True):
        together.step(torch.stack([x, v]), torch.stack([y, w]))
        apart[0].step(x, y)
        apart[1].step(v, w)
    for net, other in zip(nets, alone, strict=True):
        for (name, a), b in zip(net.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def by_position() -> nn.Sequential:
    """Return a network that looks at each token alone, and is quickly compiled."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)]
    return nn.Sequential(nn.Embedding(V, 8), *layers, nn.Linear(8, V)).double()


def cut_by_position() -> sg.core.Decoupled:
    rule = sg.SyntheticGradient((7,))
    return sg.decouple(by_position(), ["1", "2", "3"], rule, batches(1)[0][0], reduction="tokens")


# Dynamo makes an instance of the autograd function to trace it, which torch itself deprecates.
TRACING = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.mark.slow(reason="torch.compile traces the step of all layers; the plain loop is in the short suite")
def test_a_compiled_step_counts_tokens() -> None:
    torch.compiler.reset()
    one = cut_by_position()
    other = copy.deepcopy(one)
    engines = [
        LayerParallel(one, over_tokens, sgd, compile={"backend": "aot_eager"}),
        LayerParallel(other, over_tokens, sgd),
    ]
    for x, y in batches(7):
        for engine in engines:
            engine.step(x, y)
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@TRACING
def test_a_compiled_plain_loop_counts_tokens() -> None:
    torch.compiler.reset()
    nets = [cut_by_position() for _ in range(2)]
    run = torch.compile(nets[0], backend="aot_eager", fullgraph=True)
    for x, y in batches(2):
        for net, forward in zip(nets, (run, nets[1]), strict=True):
            net.zero_grad()
            over_tokens(forward(x, context=y), y).backward()
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        assert b.grad is not None, name
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def test_what_the_rules_know_and_what_the_criterion_counts_may_differ() -> None:
    """The context is the class of a sequence, and the labels are the engine's target."""
    sequence = torch.arange(B) % 3
    for engine in (Locked, InProcess):
        net = decoupled(Heard())
        trainer = engine(net, over_tokens, still)
        for x, y in batches(2):
            trainer.step(x, y, context=sequence)
        assert_heard(net, 2)
        with pytest.raises(ContextError, match=r"got a tensor of shape \(4,\)"):
            net(batches(1)[0][0], context=sequence)  # in a loop of one's own the target is not known any more


# -- recurrent and clocked ----------------------------------------------------------------------------


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.core, self.out = (
            nn.Embedding(V, 4),
            nn.GRU(4, 5, batch_first=True),
            nn.Linear(5, V),
        )

    def initial_state(self, batch_size: int, device: Any, dtype: torch.dtype) -> Tensor:
        return torch.zeros(1, batch_size, 5, device=device, dtype=dtype)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        features, state = self.core(self.embedding(x), state)
        return self.out(features), state


def summed(scores: Tensor, y: Tensor) -> Tensor:
    """Return the sum over the labels of each sequence, and the mean over sequences."""
    return F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="sum") / len(y)


def test_a_recurrent_network_with_ragged_labels_is_backpropagation_through_time() -> None:
    torch.manual_seed(0)
    net = Cell().double()
    (x, y), (v, w) = batches(2)
    start = net.initial_state(B, None, torch.float64)
    whole = copy.deepcopy(net)
    scores, state = whole(x, start)
    state.retain_grad()
    loss = summed(scores, y) + summed(whole(v, state)[0], w)
    loss.backward()
    assert state.grad is not None
    message = state.grad[0] * B  # in per-example units
    boundary = Boundary(Oracle(Recording({("state", 0): message})), start, batch_dim=1, alpha=1.0)
    trainer = Recurrent(net, boundary, summed, lambda p: torch.optim.SGD(p, 1.0), window=2)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    trainer.step(x, y)
    trainer.step(v, w, ended=True)
    for name, p in net.named_parameters():
        expected = before[name] - whole.get_parameter(name).grad  # type: ignore[operator]
        torch.testing.assert_close(p, expected, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")

    class Listening(Heard):
        def observe(self, h: Tensor, info: Any, message: Any, pending: Any = ()) -> None:
            self.messages[len(self.messages)] = message.gradient.clone()

    for window in (1, 2):
        net.load_state_dict(before)
        boundary = Boundary(Listening(), start, batch_dim=1, alpha=0.0)
        trainer = Recurrent(net, boundary, summed, still, window=window)
        trainer.step(x, y)
        trainer.step(v, w, ended=True)
        trainer.flush()
        rule: Any = boundary.rule
        torch.testing.assert_close(rule.messages[0], message, rtol=1e-10, atol=1e-12)


class Sender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Linear(3, 5)

    def forward(self, inputs: dict[str, Tensor], state: Any) -> tuple[dict[str, Tensor], Any]:
        return {"message": torch.tanh(self.low(inputs["input"]))}, state


class Receiver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Linear(5, V)

    def forward(self, inputs: dict[str, Tensor], state: Any) -> tuple[dict[str, Tensor], Any]:
        return {"report": self.top(inputs["A"])}, state


def clocked(rule: Rule, **settings: Any) -> Clocked:
    torch.manual_seed(0)
    nodes = [Node("A", Sender().double(), 1, 1), Node("B", Receiver().double(), 1, 1)]

    def criterion(outputs: dict[str, Tensor], y: Tensor) -> Tensor:
        return F.cross_entropy(outputs["report"], y, reduction="sum") / len(y)

    edge = Edge("A", "B", rule, output="message")
    example = {"A": torch.zeros(B, 3, dtype=torch.float64)}
    return Clocked(nodes, [edge], {"B": criterion}, still, example=example, **settings)


def test_a_clocked_network_hears_the_gradient_of_each_examples_loss() -> None:
    trainer = clocked(Heard())
    x, y = torch.randn(B, 3, dtype=torch.float64), torch.tensor([1, NONE, 3, NONE])
    trainer.step({"A": x}, {"B": y})
    h = trainer.net.nodes["A"]({"input": x}, None)[0]["message"].detach().requires_grad_()
    F.cross_entropy(trainer.net.nodes["B"].top(h), y, reduction="sum").backward()  # type: ignore[union-attr, operator]
    rule: Any = trainer.net.rule("A->B")
    torch.testing.assert_close(rule.messages[0], h.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reduction", ["tokens", "next_tokens"])
def test_engines_without_shares_say_so(reduction: Any) -> None:
    state = torch.zeros(1, B, 5)
    with pytest.raises(
        ConfigError, match=r"weighs the sequences .* each with labels of its own; give a criterion that"
    ):
        Boundary(Heard(), state, batch_dim=1, reduction=reduction)
    with pytest.raises(
        ConfigError, match=r"the losses of the ticks of an unroll are summed; give a criterion"
    ):
        clocked(Heard(), reduction=reduction)


# -- rules of which a module runs backward twice -------------------------------------------------------


class Ahead(Heard):
    waits, sends_ahead = True, True


class Correcting(Heard):
    corrects = True


@pytest.mark.parametrize(
    ("rule", "does"), [(Ahead, "sends its message before"), (Correcting, "corrects its credit")]
)
def test_rules_of_which_a_module_runs_backward_twice(rule: Any, does: str) -> None:
    x, y = batches(1)[0]
    net = decoupled(rule())
    expected = f"interface 'block1': its rule {rule.__name__} {does} .* use synthgrad.engines.InProcess"
    for run in (lambda: net(x, context=y), lambda: Locked(net, over_tokens, sgd).step(x, y)):
        with pytest.raises(ConfigError, match=expected):
            run()
    with pytest.raises(ConfigError, match=expected):
        LayerParallel(net, over_tokens, sgd)
    with pytest.raises(ConfigError, match=f"interface 'state': its rule {rule.__name__} {does}"):
        Boundary(rule(), torch.zeros(1, B, 5), batch_dim=1)
    with pytest.raises(ConfigError, match=f"interface 'A->B': its rule {rule.__name__} {does}"):
        clocked(rule())


# -- bad input ----------------------------------------------------------------------------------------


def engines() -> list[tuple[str, Any]]:
    """Return functions that make an engine which trains the network, plain or decoupled."""
    return [
        ("plain", lambda c: Locked(model(), c, sgd)),
        ("locked", lambda c: Locked(decoupled(TrueGradient()), c, sgd)),
        ("in process", lambda c: InProcess(decoupled(Heard()), c, sgd)),
        ("layer-parallel", lambda c: LayerParallel(decoupled(Heard()), c, sgd)),
    ]


each_engine = pytest.mark.parametrize("made", [m for _, m in engines()], ids=[n for n, _ in engines()])


def run_through(trainer: Any, x: Tensor, y: Tensor) -> None:
    """Step until the batch has come to the output of a layer-parallel network."""
    for _ in range(1 + len(CUTS)):
        trainer.step(x, y)


@each_engine
def test_ids_outside_the_vocabulary(made: Any) -> None:
    x, y = batches(1)[0]
    x[1, 2] = 13
    with pytest.raises(
        ConfigError, match=r"got ids from 0 to 13, of shape \(4, 6\), for the embedding 'embedding' of 11"
    ):
        made(over_tokens).step(x, y)


def test_ids_outside_the_vocabulary_in_a_plain_loop() -> None:
    x, y = batches(1)[0]
    x[0, 0] = -1
    with pytest.raises(
        ConfigError, match=r"got ids from -1 to \d+, .* expected 0 to 10; give the network ids of its own"
    ):
        decoupled(TrueGradient())(x, context=y)
    with pytest.raises(ConfigError, match="for the embedding 'embedding' of 11"):
        Recurrent(Cell(), Boundary(Heard(), torch.zeros(1, B, 5), batch_dim=1), summed, sgd).step(x, y)


def test_ids_that_would_be_those_of_another_network() -> None:
    nets = [decoupled(Heard()) for _ in range(2)]
    x, y = batches(1)[0]
    x[0, 0] = V  # the first id of the second network
    trainer = LayerParallel(nets, over_tokens, sgd)
    with pytest.raises(ConfigError, match="got ids from 0 to 11 for an embedding of 11 rows"):
        trainer.step(torch.stack([x, x]), torch.stack([y, y]))


@each_engine
def test_labels_outside_the_vocabulary(made: Any) -> None:
    x, y = batches(1)[0]
    y[0, 0] = 12
    with pytest.raises(
        ContextError, match=r"the criterion got labels from \d+ to 12 for scores of 11 classes, expected 0"
    ):
        run_through(made(over_tokens), x, y)


@each_engine
def test_labels_of_another_length(made: Any) -> None:
    x, y = batches(1)[0]
    by_position = nn.CrossEntropyLoss()

    def criterion(scores: Tensor, y: Tensor) -> Tensor:
        return by_position(scores.transpose(1, 2), y)

    with pytest.raises(
        ShapeError, match=r"labels of shape \(4, 5\) for scores of shape \(4, 11, 6\), expected \(4, 6\)"
    ):
        run_through(made(criterion), x, y[:, :-1])
    with pytest.raises(
        ShapeError, match=r"labels of shape \(20,\) for scores of shape \(24, 11\), expected \(24,\)"
    ):
        run_through(made(over_tokens), x, y[:, :-1])


@each_engine
def test_labels_of_another_number_of_examples(made: Any) -> None:
    x, y = batches(1)[0]
    trainer = made(over_tokens)
    expected = r"got labels of 3 sequences for a|labels of shape \(18,\) for scores of shape \(24, 11\)"
    with pytest.raises(ShapeError, match=expected):
        trainer.step(x, y[:3])


@each_engine
def test_a_batch_of_which_no_label_is_left(made: Any) -> None:
    x, y = batches(1)[0]
    hidden = torch.full_like(y, NONE)
    with pytest.raises(
        ContextError, match=r"no label is left: all 24 labels of the batch are -100, which means none"
    ):
        run_through(made(over_tokens), x, hidden)
    # A criterion that divides by one at least has a loss of zero, from which nothing is learned.
    trainer = made(over_tokens_or_none)
    run_through(trainer, x, hidden)


def over_tokens_or_none(scores: Tensor, y: Tensor) -> Tensor:
    each = F.cross_entropy(scores.flatten(0, 1), y.flatten(), reduction="sum")
    return each / (y != NONE).sum().clamp(min=1)


def test_labels_of_networks_side_by_side() -> None:
    x, y = batches(1)[0]
    wrong, hidden = y.clone(), torch.full_like(y, NONE)
    wrong[0, 0] = V
    for bad, error, expected in (
        (wrong, ContextError, "the criterion got labels for scores of 11 classes, expected 0 to 10"),
        (hidden, ContextError, "no label is left: all 24 labels"),
        (y[:3], ShapeError, "got a target of|got labels of 3 sequences for a batch of 4"),
    ):
        trainer = LayerParallel([decoupled(Heard()) for _ in range(2)], over_tokens, sgd)
        pair = torch.stack([y if len(bad) == len(y) else bad, bad])
        with pytest.raises(error, match=expected):
            run_through(trainer, torch.stack([x, x]), pair)


class Own(nn.Module):
    """Computes the loss of the next token itself, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.low, self.top = nn.Embedding(V, 8), nn.Linear(8, 8), nn.Linear(8, V)

    def forward(self, ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        scores = self.top(torch.tanh(self.low(self.embedding(ids))))
        return {"loss": over_tokens(scores[:, :-1].contiguous(), labels[:, 1:].contiguous())}


@pytest.mark.parametrize("engine", [Locked, InProcess])
def test_labels_that_a_model_is_given(engine: Any) -> None:
    """Rules have the next tokens as context, and the model's own labels count, which it shifts."""
    x, y = batches(1)[0]
    net = sg.decouple(Own().double(), ["low"], TrueGradient(), (x, y), reduction="next_tokens")
    trainer = engine(net, lambda output, _: output["loss"], sgd)
    plain = Own().double()
    optimizer = sgd(plain.parameters())
    for ids, labels in batches(STEPS):
        trainer.step({"ids": ids, "labels": labels}, context=F.pad(labels[:, 1:], (0, 1), value=NONE))
        optimizer.zero_grad()
        plain(ids, labels)["loss"].backward()
        optimizer.step()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(net.model.get_parameter(name), p, rtol=1e-9, atol=1e-11)
    hidden = torch.full_like(y, NONE)
    hidden[:, 0] = 1
    if engine is Locked:
        with pytest.raises(ContextError, match="no label is left: all 20 labels"):
            trainer.step({"ids": x, "labels": hidden})


def test_a_shifted_loss_without_labels_and_one_that_diverges_for_another_reason() -> None:
    x, y = batches(1)[0]
    only_first = torch.full_like(y, NONE)
    only_first[:, 0] = 1  # which is compared with nothing

    def shifted(scores: Tensor, y: Tensor) -> Tensor:
        return over_tokens(scores[:, :-1].contiguous(), y[:, 1:].contiguous())

    net = decoupled(TrueGradient(), reduction="next_tokens")
    with pytest.raises(ContextError, match="no label is left: all 20 labels"):
        Locked(net, shifted, sgd).step(x, only_first)
    with pytest.raises(DivergedError, match="the loss was not finite"):
        Locked(decoupled(TrueGradient()), lambda s, y: over_tokens(s, y) * float("nan"), sgd).step(x, y)


def test_batches_without_labels_can_be_skipped() -> None:
    x, y = batches(1)[0]
    for engine in (Locked, InProcess):
        net = decoupled(TrueGradient())
        guard = Guard(skip=True)
        trainer = engine(net, over_tokens, sgd, guard=guard)
        before = copy.deepcopy(net.state_dict())
        trainer.step(x, torch.full_like(y, NONE))
        assert guard.skipped["loss"] == 1
        for name, value in net.state_dict().items():
            assert torch.equal(value, before[name]), name

"""``bench gpt``: what each rule costs on a GPT, in time and in memory, over a loop of backpropagation.

The loop is the one that anybody would write, on the same network with the same AdamW. Every line has a process of its
own, in which it takes turns with the loop, update by update: a machine gets faster and slower within minutes. Tokens are drawn at random: what a step costs does not depend on them. Where an update is made of several batches,
backpropagation is compared with late gradients by every number of versions of the weights; a step is still a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import ConfigError
from ..tasks.gpt import gpt, gpt_cuts
from ..training.methods import DataFacts, method_named
from ..training.settings import RuleSettings, recorded_fields
from ..training.trainers import TrainerSpec, make_trainer, precision_context
from .declarations import GPT, GptScope
from .memory.probe import Memory, OwnProcessBench, probe
from .steps import HAND_WRITTEN
from .turns import TimedStep, ratios, take_turns

__all__ = ["BENCHMARK", "GptBench", "GptCase", "GptSize", "make", "observe"]

_LR = 3e-4
#: The lags of corrections, in batches; the experiment `gpt` has the same.
_LATE, _LATER = 4, 16
#: Updates over which the highest memory is taken.
_COUNTED = 2
_VERSIONS = {None: "all versions", 2: "2BW", 1: "PACI"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GptSize:
    """The size of a GPT, of its batches and of its updates.

    Attributes:
        seed: seed of weights and tokens.
        layers: blocks.
        width: features of a token.
        context: tokens of a sequence.
        vocabulary: tokens that there are.
        batch_size: sequences in a batch.
        modules: modules of about equal numbers of blocks.
        accumulate: batches of an update.
    """

    seed: int
    layers: int
    width: int
    context: int
    vocabulary: int
    batch_size: int
    modules: int
    accumulate: int = 1


@dataclass(frozen=True, slots=True)
class GptCase:
    """What a line measures.

    Attributes:
        method: name.
        engine: ``in-process``, ``plain``, or the hand-written loop.
        delay: batches that a message takes to cross an interface.
        blocks: private blocks of the head at each cut; None where there is no head.
        versions: versions of the weights: 2 (2BW), 1 (PACI), or None for all that are in use.
        accumulates: whether an update is made of several batches while messages are late.
    """

    method: str
    engine: str = "in-process"
    delay: int = 0
    blocks: int | None = None
    versions: int | None = None
    accumulates: bool = False

    @property
    def variant(self) -> str | None:
        """What distinguishes the line from others of the method; None for nothing."""
        words = [f"lag {self.delay}"] if self.delay else []
        words += [_VERSIONS[self.versions]] if self.accumulates else []
        if self.blocks is not None:
            words.append(
                f"{self.blocks} private block{'s' * (self.blocks > 1)}" if self.blocks else "linear head"
            )
        return ", ".join(words) or None

    def settings(self) -> RuleSettings:
        """Return the settings of the rule."""
        blocks = {} if self.blocks is None else {"blocks": self.blocks}
        return replace(method_named(self.method).settings("", "gpt"), delay=self.delay, **blocks)


_REFERENCE = GptCase("backprop", HAND_WRITTEN)
_BACKPROP = GptCase("backprop", "plain")

#: By method, the lines of updates that are made of one batch.
_CASES: Mapping[str, Sequence[GptCase]] = {
    "backprop": (_BACKPROP,),
    "delayed": (GptCase("delayed", delay=1),),
    "cdni": (GptCase("cdni"),),
    "local_loss": tuple(GptCase("local_loss", blocks=blocks) for blocks in (0, 1, 2)),
    "interlocked": tuple(GptCase("interlocked", blocks=blocks) for blocks in (0, 1)),
    "head_gradient": (GptCase("head_gradient", blocks=0),),
    "late_correction": (
        GptCase("late_correction", delay=_LATE, blocks=0),
        GptCase("late_correction", delay=_LATE, blocks=1),
        GptCase("late_correction", delay=_LATER, blocks=0),
    ),
}
#: Methods that are measured where an update is made of several batches.
_ACCUMULATED = ("backprop", "delayed")


def observe(scope: GptScope, size: GptSize, case: GptCase) -> dict[str, Any]:
    """Measure in this process: bytes held, highest memory, and times in turns with the loop; they are those of a batch."""
    torch.set_num_threads(scope.threads)
    how: dict[str, Any] = {"heads": scope.heads, "device": scope.device, "precision": scope.precision}
    # Until the lowest module has learned once, and has made an update: from then on every update is like the last.
    settle = -(-case.delay * (size.modules - 1) // size.accumulate) + 1
    tiny, _ = make(case, replace(size, width=2 * scope.heads, context=2, vocabulary=2, batch_size=2), **how)
    for _ in range(settle):
        tiny()  # what is loaded at first use is nobody's cost
    del tiny
    memory = Memory(scope.device)
    update, alive = make(case, size, **how)
    held = probe(update, alive, memory, _COUNTED, settle)
    loop, _ = make(_REFERENCE, size, **how)
    loop()
    own, reference = TimedStep(update, 1), TimedStep(loop, 1)
    if failed := take_turns({"own": own, "reference": reference}, scope.rounds, scope.device):
        raise RuntimeError(f"in turns with the loop: {', '.join(failed.values())}")
    times = ratios(own.times_ms, reference.times_ms, GptBench.reference, what="ratio_step")
    of_a_batch = {name: times[name] / size.accumulate for name in times if name.startswith("step_ms")}
    return held | times | of_a_batch


def make(
    case: GptCase, size: GptSize, *, heads: int, device: str = "cpu", precision: str = "float32"
) -> tuple[Callable[[], object], list[Tensor]]:
    """Build a network and its trainer.

    Args:
        case: what to build.
        size: of the network and the batches.
        heads: attention heads of a block.
        device: where.
        precision: ``float32`` or ``bfloat16``.

    Returns:
        A function that trains on the batches of one update, and the tensors that live all the time.
    """
    torch.manual_seed(size.seed)
    drawn = torch.randint(size.vocabulary, (size.batch_size, size.context + 1)).to(device)
    x, y = drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()
    model: nn.Module = gpt(
        size.vocabulary, width=size.width, blocks=size.layers, heads=heads, context=size.context
    ).to(device)
    if case.engine == HAND_WRITTEN:
        return _by_hand(model, x, y, size.accumulate, precision), [
            *model.parameters(),
            *model.buffers(),
            x,
            y,
        ]
    spec = TrainerSpec(
        method_named(case.method),
        case.settings(),
        DataFacts(size.vocabulary, len(x)),
        _LR,
        size.seed,
        case.engine,
        precision=precision,
        optimizer="adamw",
        accumulate=size.accumulate,
        versions=case.versions,
        tokens=True,
    )
    net, trainer = make_trainer(spec, model, gpt_cuts(size.layers, size.modules), x)

    def update() -> None:
        for _ in range(size.accumulate):
            with precision_context(precision, device):
                trainer.step(x, y)

    return update, [*net.parameters(), *net.buffers(), x, y]


def _by_hand(model: nn.Module, x: Tensor, y: Tensor, accumulate: int, precision: str) -> Callable[[], None]:
    """Return what a user of PyTorch writes; AdamW has the constants of the laboratory's."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, _LR, (0.9, 0.95), fused=True)

    def update() -> None:
        optimizer.zero_grad()
        for _ in range(accumulate):
            with precision_context(precision, x.device.type):
                loss = F.cross_entropy(model(x).flatten(0, 1).float(), y.flatten())
            (loss / accumulate).backward()
        optimizer.step()

    return update


class GptBench(OwnProcessBench[GptScope, GptSize, GptCase]):
    """A GPT on random tokens, cut into modules of equal numbers of blocks, AdamW."""

    declared = GPT
    axes = {
        **{"seed": "seeds", "layers": "layers", "width": "widths", "context": "contexts"},
        **{"vocabulary": "vocabularies", "batch_size": "batch_sizes"},
        **{"modules": "modules", "accumulate": "accumulate"},
    }
    size = GptSize
    optimizer = "AdamW, fused"
    reference = "backprop"
    observe = staticmethod(observe)

    def is_reference(self, size: GptSize, case: GptCase) -> bool:
        return case == _REFERENCE

    def check(self, scope: GptScope) -> None:
        for width in scope.widths:
            with torch.device("meta"):
                gpt(1, width=width, blocks=1, heads=scope.heads, context=1)
        sizes = list(self.sizes(scope))
        if not sizes:
            raise ConfigError(
                f"--accumulate {','.join(map(str, scope.accumulate))}: updates of several batches are measured with "
                f"{' and '.join(_ACCUMULATED)} alone; add 1, or one of these methods"
            )
        for size in sizes:
            gpt_cuts(size.layers, size.modules)
            if "delayed" in scope.methods and size.accumulate > 1 and size.modules - 1 > size.accumulate:
                raise ConfigError(
                    f"--accumulate {size.accumulate} with {size.modules} modules: the lowest learns {size.modules - 1} "
                    "batches late at the least, and with 2BW no gradient may be more than one update late; take "
                    f"--accumulate 1, or {size.modules - 1} or more, or fewer modules"
                )

    def sizes(self, scope: GptScope) -> Iterable[GptSize]:
        """Return the sizes at which a method of the scope is measured."""
        accumulates = any(name in _ACCUMULATED for name in scope.methods)
        return (size for size in super().sizes(scope) if size.accumulate == 1 or accumulates)

    def cases(self, scope: GptScope, size: GptSize) -> Sequence[GptCase]:
        """Return the reference first, then every method as the size has it."""
        by_method = _CASES if size.accumulate == 1 else {"backprop": (_BACKPROP,), "delayed": _late(size)}
        return [_REFERENCE, *(case for name in scope.methods for case in by_method.get(name, ()))]

    def cell(self, scope: GptScope, size: GptSize, case: GptCase) -> Mapping[str, Any]:
        shape = {"arch": "gpt", "layers": size.layers, "width": size.width, "heads": scope.heads}
        data = {"context": size.context, "vocabulary": size.vocabulary, "batch_size": size.batch_size}
        how = {"modules": size.modules, "accumulate": size.accumulate, "threads": scope.threads}
        made = {
            "engine": case.engine,
            "variant": case.variant,
            "delay": case.delay,
            "versions": case.versions,
        }
        unusual = {} if scope.precision == "float32" else {"precision": scope.precision}
        return {**shape, **data, **how, **made, **unusual}

    def config(self, scope: GptScope, size: GptSize, case: GptCase) -> Mapping[str, Any]:
        has_rule = method_named(case.method).rule is not None
        return {"rule": recorded_fields(case.settings()) if has_rule else None}

    def label(self, scope: GptScope, size: GptSize) -> str:
        parts = [f"{size.layers} blocks × {size.width}", f"{size.batch_size} × {size.context} tokens"]
        parts += [f"vocabulary {size.vocabulary}", f"{size.modules} modules"]
        parts += [f"updates of {size.accumulate} batches"] if size.accumulate > 1 else []
        return ", ".join(parts)


def _late(size: GptSize) -> list[GptCase]:
    """Return late gradients by every number of versions of the weights, as late as one update allows."""
    delay = max(1, (size.accumulate - 1) // (size.modules - 1))
    return [GptCase("delayed", delay=delay, versions=v, accumulates=True) for v in _VERSIONS]


BENCHMARK = GptBench()

"""`check_rule`: the whole contract of a rule, clause by clause."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..core import ConfigError, Rule, SynthgradError
from ..core.given import check_whole, instance_of, takes
from . import clauses as alone
from . import in_engines
from .subject import Broken, Subject, small_network

__all__ = ["CLAUSES", "ContractError", "check_rule"]

Clause = Callable[[Subject], None]

#: The clauses by name, in the order in which they are tried: what a rule does alone, then in engines.
CLAUSES: Mapping[str, Clause] = MappingProxyType(
    {
        "copies": alone.copies,
        "credit": alone.credit,
        "observation": alone.observation,
        "units": alone.units,
        "state dict": alone.state_dict,
        "dtype": alone.dtype,
        "device": alone.device,
        "determinism": in_engines.determinism,
        "resume": in_engines.resume,
        "late messages": in_engines.late,
        "missing messages": in_engines.never,
        "engines agree": in_engines.engines_agree,
        "layer-parallel": in_engines.layer_parallel,
        "stages": in_engines.stages,
        "recurrent": in_engines.recurrent,
        "clocked": in_engines.clocked,
    }
)


class ContractError(SynthgradError, AssertionError):
    """A rule does not keep its contract.

    Attributes:
        clause: name of the one that failed, a key of `CLAUSES`.
    """

    def __init__(self, clause: str, message: str) -> None:
        self.clause = clause
        super().__init__(f"clause '{clause}': {message}")


def check_rule(
    rule: Rule | Callable[[], Rule],
    *,
    classes: int = 10,
    model: nn.Module | None = None,
    at: Sequence[str] | None = None,
    batches: Sequence[tuple[Any, Any]] | None = None,
    criterion: Callable[[Any, Any], Tensor] = F.cross_entropy,
    clauses: Sequence[str] | None = None,
) -> None:
    """Try a rule in every clause of the contract and in every engine, on a small network in float64; return nothing.

    The clauses: every interface has a copy of its own; credit is detached, of the message's shape, dtype and device;
    the loss of `observe` is one scalar, with and without ``pending``; credit and losses are those of single examples;
    what is learned is in the state dict; dtype and device follow the network; runs repeat and resume to the last bit;
    messages may be late or missing; the plain loop, the in-process, the layer-parallel and the stages engine agree;
    and at boundaries and between clocked nodes runs repeat and resume too. Engines may refuse a rule with a reason.

    Needs PyTorch alone, takes seconds, and leaves the state of random numbers as it was.

    Args:
        rule: a rule as `decouple` takes it, or a function (a class) that makes one without arguments.
        classes: outputs of the small network; labels are below.
        model: another network, for rules that want messages of another form; in float64, cut at ``at``.
        at: names of its cuts.
        batches: for it: six or more pairs ``(x, y)``; ``y`` is the target and the rules' context.
        criterion: of output and target, the mean over the batch.
        clauses: names of those to try; None for all of `CLAUSES`.

    Raises:
        ContractError: at the first clause that does not hold; it names the clause.
        ConfigError: if an argument does not fit.
    """
    check_whole("classes", classes, 2, "number of classes")
    if (model is None) != (at is None) or (model is None) != (batches is None):
        raise ConfigError(
            "of model, at and batches some are given; give all three, or none for the small network"
        )
    if unknown := set(clauses or ()) - set(CLAUSES):
        raise ConfigError(f"clauses={sorted(unknown)}: expected some of {list(CLAUSES)}")
    make = _maker(rule)
    if model is None or at is None or batches is None:
        model, at, batches = small_network(classes)
    subject = Subject(make, model, tuple(at), batches, criterion)
    for name in CLAUSES if clauses is None else clauses:
        try:
            CLAUSES[name](subject)
        except Broken as broken:
            raise ContractError(name, str(broken)) from None
        except Exception as error:
            raise ContractError(name, f"{type(error).__name__}: {error}") from error


def _maker(rule: Rule | Callable[[], Rule]) -> Callable[[], Rule]:
    """Return a function that makes the rule."""
    if isinstance(rule, Rule):
        return lambda: rule
    if not callable(rule) or (inspect.isclass(rule) and not takes(rule)):
        instance_of(Rule, rule, "rule", "MyRule()")
    return lambda: instance_of(Rule, rule(), "rule", "lambda: MyRule()")

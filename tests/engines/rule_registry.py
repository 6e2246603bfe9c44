"""All rules that tests of engines run through: whatever is here is enrolled in every one of them.

A method of the experiments is enrolled by being there, an exported rule by an entry in `RULES`; `test_contract.py`
fails if one is missing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import nn

import synthgrad as sg
from synthgrad import rules
from synthgrad.core import Rule, Site
from synthgrad.lab.training.methods import METHODS, DataFacts
from synthgrad.lab.training.settings import RuleSettings
from tests.networks import CLASSES

__all__ = ["EXAMPLES", "RULES", "TAKEN_EVERYWHERE", "exported"]

#: Examples that rules with a memory remember; ids are below this.
EXAMPLES = 100

MakeRule = Callable[[], Rule]


def _of_methods() -> dict[str, MakeRule]:
    settings = {
        "": RuleSettings(),
        "-means": RuleSettings(label_rate=1.0),
        "-hidden": RuleSettings(hidden=(6,)),
        "-like-layer": RuleSettings(like_layer=True),
    }
    return {
        f"{m.name}{suffix}": lambda make=m.rule, s=s: make(s, DataFacts(CLASSES, EXAMPLES))  # type: ignore[misc]
        for m in METHODS.values()
        if m.rule is not None
        for suffix, s in settings.items()
    }


def _form(rule: Rule) -> str:
    """Return what a rule is at an interface of seven features: equal for rules that are built alike."""
    bound = rule.bind(Site("form", (4, 7), torch.float64, torch.device("cpu"), nn.Identity()))
    return f"{type(bound).__name__} {bound}"


def _distinct(made: dict[str, MakeRule]) -> dict[str, MakeRule]:
    """Return the first of each form: not every setting makes a difference to every method."""
    seen: dict[str, str] = {}
    for name, make in made.items():
        seen.setdefault(_form(make()), name)
    return {name: made[name] for name in seen.values()}


RULES: dict[str, MakeRule] = _distinct(_of_methods()) | {
    "cdni-normed": lambda: sg.SyntheticGradient(
        (6,), CLASSES
    ),  # counts what it predicts, in BatchNorm's statistics
    "cdni-rank": lambda: sg.SyntheticGradient(context=CLASSES, model=rules.models.class_means(rank=2)),
    "cdni-diagonal": lambda: sg.SyntheticGradient(context=CLASSES, model=rules.models.class_means(rank=0)),
    "stale-average": lambda: rules.StaleGradient(EXAMPLES, decay=0.5, max_age=5),
    "sobolev-value": lambda: rules.Sobolev(CLASSES, (6,), critic="value", value_weight=0.5),
    "least_squares": lambda: rules.LeastSquaresGradient(CLASSES),
    "least_squares-one": lambda: rules.LeastSquaresGradient(rate=0.2, damping=0.1),
    "true_gradient-shrunk": lambda: rules.TrueGradient(shrink=0.5),
    "hand_over": lambda: rules.HandOver(sg.SyntheticGradient(context=CLASSES), warm_up=2, min_cosine=0.2),
    "hand_over-hidden": lambda: rules.HandOver(sg.SyntheticGradient((6,)), min_cosine=0.0, memory=0.0),
    "hand_over-frozen": lambda: rules.HandOver(sg.SyntheticGradient(context=CLASSES), freeze_after=20),
    "hand_over-local": lambda: rules.HandOver(rules.LocalLoss(CLASSES), warm_up=1, freeze_after=4),
    "hand_over-critic": lambda: rules.HandOver(rules.Sobolev(CLASSES), min_cosine=0.3),
    "hand_over-stale": lambda: rules.HandOver(rules.StaleGradient(EXAMPLES), warm_up=3),
    "hand_over-least_squares": lambda: rules.HandOver(rules.LeastSquaresGradient(CLASSES), min_cosine=0.1),
    "least_squares-by_place": lambda: rules.LeastSquaresGradient(per_token=True),
    "interlocked": lambda: rules.InterlockedLoss(CLASSES),
    "head_gradient": lambda: rules.HeadGradient(CLASSES),
    "head_gradient-at_once": lambda: rules.HeadGradient(
        CLASSES, activations=True, every=1, ridge=0.1, memory=0.5
    ),
    "hand_over-head_gradient": lambda: rules.HandOver(
        rules.HeadGradient(CLASSES, every=2), warm_up=1, min_cosine=0.1
    ),
    "hand_over-local-cosine": lambda: rules.HandOver(rules.LocalLoss(CLASSES), min_cosine=0.2),
    "late_correction": lambda: rules.LateCorrection(rules.LocalLoss(CLASSES)),
    "late_correction-share": lambda: rules.LateCorrection(rules.LocalLoss(CLASSES), 0.5, 0.5),
    "late_correction-cdni": lambda: rules.LateCorrection(
        sg.SyntheticGradient(context=CLASSES), lambda age: 1 / (1 + age), 0.5
    ),
    "late_correction-critic": lambda: rules.LateCorrection(rules.Sobolev(CLASSES), 1.0),
    "late_correction-least_squares": lambda: rules.LateCorrection(rules.LeastSquaresGradient(CLASSES)),
    "late_correction-head_gradient": lambda: rules.LateCorrection(rules.HeadGradient(CLASSES, every=2)),
}


def _runs_backward_once(make: MakeRule) -> bool:
    rule = make()
    return not (rule.sends_ahead or rule.corrects)


def _is_taken_everywhere(make: MakeRule) -> bool:
    rule = make()
    return _runs_backward_once(make) and not (rule.listens and rule.learns_at_once)


#: Those for which a module runs backward once for a batch: only the in-process engine takes the others.
ONE_BACKWARD = {name: make for name, make in RULES.items() if _runs_backward_once(make)}
#: Of these, those that do not learn both from messages and from a loss of their own: stages take no such rules.
TAKEN_EVERYWHERE = {name: make for name, make in RULES.items() if _is_taken_everywhere(make)}


def exported() -> set[type[Rule]]:
    """Return the classes of rules that the package exports."""
    return {v for v in vars(rules).values() if inspect.isclass(v) and issubclass(v, Rule)}

"""The comparison of ``synthgrad compare``: one network and data set, trained with several methods (Bisong 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from ..names import DATA, is_own_data
from ..names import METHODS as KNOWN
from ..training.payloads import ARCHS, ENGINES, FeedForward
from ..training.run import Run
from ..training.settings import RuleSettings, Schedule, refuse
from ._experiment import Group, Variant, make_run
from ._papers import FULL, feed_forward, width_of

__all__ = ["METHODS", "SCHEDULES", "TIERS", "comparison", "schedules"]

TIERS = ("smoke", "quick", "full")

#: Methods that are compared by default.
METHODS = ("backprop", "no_bprop", "dni", "cdni")

_SMOKE = Schedule(steps=300, lr=1e-3, eval_every=50)
#: Schedules by data set and tier; the entry ``""`` is for the user's own data.
SCHEDULES: dict[str, dict[str, Schedule]] = {
    "mnist-10k": {"smoke": _SMOKE, "quick": Schedule(steps=1500, lr=1e-3, eval_every=100), "full": FULL},
    "mnist": {"smoke": _SMOKE, "quick": Schedule(steps=6000, eval_every=250), "full": FULL},
    "cifar10": {
        "smoke": Schedule(steps=100, lr=1e-3, eval_every=25),
        "quick": Schedule(steps=6000, eval_every=250),
        "full": FULL,
    },
    "": {"smoke": _SMOKE, "quick": Schedule(steps=1500, lr=1e-3, eval_every=100), "full": FULL},
}

_OF_PAYLOAD = frozenset(f.name for f in fields(FeedForward))
_OF_RULE = frozenset(f.name for f in fields(RuleSettings))
_OF_SCHEDULE = ("steps", "batch_size", "lr")
#: Settings that choose the network or how it is computed; a run with them still belongs to the tier.
_OF_TIER = ("arch", "layers", "width", "at", "engine", "compiled", "precision", "model")


def comparison(
    tier: str = "quick",
    data: str = "mnist-10k",
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] = (0,),
    device: str = "cpu",
    data_dir: str | None = None,
    **given: Any,
) -> list[Run]:
    """Return the runs of a comparison, seed by seed, so that an interrupted one has all methods for some seeds.

    Args:
        tier: ``smoke``, ``quick`` or ``full``.
        data: name of a data set, or the user's own data.
        methods: names of the methods.
        seeds: seeds; each method runs once with each.
        device: ``cpu`` or ``cuda``.
        data_dir: directory of data files, or None.
        given: fields of `FeedForward`, `Schedule` and `RuleSettings`, and ``precision`` and ``model``, which replace
            those of the tier; None keeps the tier's. With a tuple of ``steps``, every method is trained once for each
            number. Runs with settings that do not belong to the tier are recorded as tier ``custom``.

    Raises:
        ConfigError: if a name is unknown or a number is out of range.
    """
    known = {*_OF_PAYLOAD, *_OF_RULE, *_OF_SCHEDULE, *_OF_TIER}
    if unknown := sorted(given.keys() - known):
        refuse(f"setting '{unknown[0]}' is unknown; accepted: {', '.join(sorted(known))}")
    given = {name: value for name, value in given.items() if value is not None}
    if tier not in TIERS:
        refuse(f"tier '{tier}' is unknown; accepted: {', '.join(TIERS)}")
    if data not in DATA and not is_own_data(data):
        refuse(
            f"data set '{data}' is unknown; accepted: {', '.join(DATA)}, a file .npz, .pt or .safetensors, or "
            "package.module:factory"
        )
    if not methods:
        refuse(f"no method is named; expected some of {', '.join(KNOWN)}")
    if unknown := [name for name in methods if name not in KNOWN]:
        refuse(f"method '{unknown[0]}' is unknown; accepted: {', '.join(KNOWN)}")
    custom = any(name not in _OF_TIER and value is not False for name, value in given.items())
    rule = {name: given[name] for name in given if name in _OF_RULE}
    payload = _payload(data, {name: given[name] for name in given if name in {*_OF_PAYLOAD, "model"}})
    precision = given.get("precision", "float32")
    runs = [
        make_run(
            "compare",
            "custom" if custom else tier,
            seed,
            Group(payload, schedule, (), precision=precision),
            _variant(payload, method, rule),
        )
        for seed in seeds
        for schedule in schedules(tier, data, {name: given[name] for name in given if name in _OF_SCHEDULE})
        for method in methods
    ]
    return [replace(run, device=device, data_dir=data_dir) for run in runs]


def _variant(payload: FeedForward, method: str, rule: Mapping[str, Any]) -> Variant:
    """Return the variant of a method with its default settings and the given ones."""
    from ..training.methods import method_named

    if method_named(method).rule is None:
        # As in the papers, backpropagation makes every update, so that all methods are compared with the same run.
        return Variant(method, payload={"update_prob": 1.0})
    return Variant(method, replace(payload.default_rule(method), **rule) if rule else None)


def _payload(data: str, given: Mapping[str, Any]) -> FeedForward:
    """Return the payload of a comparison.

    Raises:
        ConfigError: if settings contradict each other, or a value is unknown.
    """
    given = dict(given)
    engine, prob = given.get("engine", "in-process"), given.get("update_prob", 1.0)
    if engine not in ENGINES:
        refuse(f"engine '{engine}' is unknown; accepted: {', '.join(ENGINES)}")
    if prob != 1 and engine != "in-process":
        refuse(
            f"update probability {prob}: expected 1 with the {engine} engine, which skips no updates; use the "
            "in-process engine"
        )
    model = given.pop("model", None)
    if model is not None:
        module, _, factory = model.partition(":")
        if not module or not factory:
            refuse(f"--model {model}: expected package.module:factory")
        if given.keys() & {"layers", "width"} or given.get("arch", "fcn") != "fcn":
            refuse(
                "--model is given with --arch, --layers or --width; leave these out, because the factory decides them"
            )
        given.pop("arch", None)
        return feed_forward(data, model, layers=None, width=None, **given)
    arch = given.pop("arch", "fcn")
    if arch not in ARCHS:
        refuse(f"network '{arch}' is unknown; accepted: {', '.join(ARCHS)}")
    given.setdefault("width", width_of(arch, data))
    return feed_forward(data, arch, **given)


def schedules(tier: str, data: str, given: Mapping[str, Any]) -> list[Schedule]:
    """Return a schedule for each number of steps, all with as many evaluations as the tier's schedule.

    Args:
        tier: name of the tier.
        data: name of the data set.
        given: ``steps``, a number or a tuple, ``batch_size`` and ``lr``, which replace those of the tier.
    """
    default = SCHEDULES.get(data, SCHEDULES[""])[tier]
    steps = given.get("steps", default.steps)
    rest = {name: value for name, value in given.items() if name != "steps"}
    return [
        replace(default, steps=n, eval_every=max(1, default.eval_every * max(n, 0) // default.steps), **rest)
        for n in (steps if isinstance(steps, tuple) else (steps,))
    ]

"""The comparison of ``synthgrad compare``: one network and data set, trained with several methods (Bisong 2017).

The network is a feed-forward one on labelled examples, or a GPT on a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..names import DATA, TEXT_PREFIX, TEXTS, is_own_data
from ..names import METHODS as KNOWN
from ..options import options_of
from ..training.payloads import ARCHS, ENGINES, FeedForward, LanguageModel, Payload
from ..training.run import Run
from ..training.settings import RuleSettings, Schedule, refuse
from ._experiment import Group, Variant, make_run
from ._papers import FULL, feed_forward, width_of

__all__ = ["GPT_METHODS", "METHODS", "SCHEDULES", "TIERS", "comparison", "schedules"]

TIERS = ("smoke", "quick", "full")

#: Methods that are compared by default.
METHODS = ("backprop", "no_bprop", "dni", "cdni")
#: The same for a GPT.
GPT_METHODS = ("backprop", "delayed", "local_loss", "late_correction")

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

_GPT = Schedule(300, 16, lr=2e-3, milestones=(), eval_every=50, optimizer="adamw")
#: Schedules of a GPT by tier.
_GPT_SCHEDULES = {
    "smoke": replace(_GPT, steps=40, batch_size=8, eval_every=20),
    "quick": _GPT,
    "full": replace(_GPT, steps=10_000, batch_size=32, eval_every=250, lr_warm_up=100, cosine=True),
}

_PAYLOADS: dict[str, type[Payload]] = {"gpt": LanguageModel}  # of other networks: `FeedForward`
_OF_RULE = frozenset(f.name for f in fields(RuleSettings))
_OF_SCHEDULE = frozenset(options_of(Schedule))
#: Settings that choose the network or how it is computed; a run with them still belongs to the tier.
_OF_TIER = (
    *("arch", "layers", "width", "at", "engine", "compiled", "precision", "model"),
    *("heads", "context", "tokens", "vocabulary", "tied", "modules", "normalisation", "activation"),
    "answers",
    "label_rate",  # 0 repeats the runs of version 0.1, which belong to the tier
)
_VOCABULARY = 512


def comparison(
    tier: str = "quick",
    data: str | None = None,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    device: str = "cpu",
    data_dir: str | None = None,
    **given: Any,
) -> list[Run]:
    """Return the runs of a comparison, seed by seed, so that an interrupted one has all methods for some seeds.

    Args:
        tier: ``smoke``, ``quick`` or ``full``.
        data: name of a data set or text, or the user's own data; None for embedded ones.
        methods: names of the methods; None for those that are compared by default.
        seeds: seeds; each method runs once with each.
        device: ``cpu`` or ``cuda``.
        data_dir: directory of data files, or None.
        given: fields of `FeedForward` (with ``arch="gpt"``, of `LanguageModel`), `Schedule` and `RuleSettings`, and
            ``precision`` and ``model``, which replace those of the tier; None keeps the tier's. With a tuple of
            ``steps``, every method is trained once for each number. Runs with settings that do not belong to the tier
            are recorded as tier ``custom``.

    Raises:
        ConfigError: if a name is unknown or a number is out of range.
    """
    given = {name: value for name, value in given.items() if value is not None}
    arch = given.get("arch", "fcn")
    _check_names(arch, given)
    if tier not in TIERS:
        refuse(f"tier '{tier}' is unknown; accepted: {', '.join(TIERS)}")
    data = data or ("shakespeare-50k" if arch == "gpt" else "mnist-10k")
    _check_data(arch, data)
    methods = (GPT_METHODS if arch == "gpt" else METHODS) if methods is None else methods
    if not methods:
        refuse(f"no method is named; expected some of {', '.join(KNOWN)}")
    if unknown := [name for name in methods if name not in KNOWN]:
        refuse(f"method '{unknown[0]}' is unknown; accepted: {', '.join(KNOWN)}")
    custom = any(name not in _OF_TIER and value is not False for name, value in given.items())
    rule = {name: given[name] for name in given if name in _OF_RULE}
    of_network = {name: given[name] for name in given if name in {*_names_of_payload(arch), "model"}}
    payload = _language_model(data, of_network) if arch == "gpt" else _feed_forward(data, of_network)
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
        for schedule in schedules(
            tier, data, {name: given[name] for name in given if name in _OF_SCHEDULE}, arch
        )
        for method in methods
    ]
    return [replace(run, device=device, data_dir=data_dir) for run in runs]


def _names_of_payload(arch: str) -> frozenset[str]:
    return frozenset(f.name for f in fields(_PAYLOADS.get(arch, FeedForward)))


def _check_names(arch: str, given: Mapping[str, Any]) -> None:
    """Refuse settings that nothing has, and those that only another kind of network has."""
    known = {*_OF_RULE, *_OF_SCHEDULE, *_OF_TIER, *_names_of_payload("fcn"), *_names_of_payload("gpt")}
    if unknown := sorted(given.keys() - known):
        refuse(f"setting '{unknown[0]}' is unknown; accepted: {', '.join(sorted(known))}")
    own = {*_OF_RULE, *_OF_SCHEDULE, *_names_of_payload(arch), "precision"}
    own |= set() if arch == "gpt" else {"model"}
    if others := [name for name, value in given.items() if name not in own and value is not False]:
        flag = options_of(FeedForward)[others[0]].flag if others[0] in options_of(FeedForward) else ""
        flag = flag or "--" + others[0].replace("_", "-")
        fitting = "is not for --arch gpt" if arch == "gpt" else "is for --arch gpt"
        refuse(f"{flag} {fitting}; leave it out, or train another network")


def _check_data(arch: str, data: str) -> None:
    if arch == "gpt":
        if data in DATA or is_own_data(data):
            refuse(
                f"data set '{data}' is not a text, which --arch gpt is trained on; accepted: {', '.join(TEXTS)}, or the "
                "path of a UTF-8 file"
            )
        return
    if data in TEXTS or data.startswith(TEXT_PREFIX) or Path(data).suffix in (".txt", ".gz"):
        refuse(f"data '{data}' is a text, and network '{arch}' takes labelled examples; use --arch gpt")
    if data not in DATA and not is_own_data(data):
        refuse(
            f"data set '{data}' is unknown; accepted: {', '.join(DATA)}, a file .npz, .pt or .safetensors, "
            "package.module:factory, or a text with --arch gpt"
        )


def _variant(payload: Payload, method: str, rule: Mapping[str, Any]) -> Variant:
    """Return the variant of a method with its default settings and the given ones."""
    from ..training.methods import method_named

    if method_named(method).rule is None:
        # As in the papers, backpropagation makes every update, so that all methods are compared with the same run. None
        # of its gradients is late.
        every = {"update_prob": 1.0} if isinstance(payload, FeedForward) else {}
        return Variant(method, payload=every, schedule={"error_feedback": False, "versions": None})
    return Variant(method, replace(payload.default_rule(method), **rule) if rule else None)


def _language_model(data: str, given: Mapping[str, Any]) -> LanguageModel:
    """Return the payload of a comparison on a text.

    Raises:
        ConfigError: if settings contradict each other, or a value is unknown.
    """
    given = dict(given)
    if given.get("at"):
        if "modules" in given:
            refuse("--at is given with --modules; name the cuts, or say how many modules there are")
        given["modules"] = None
    if given.get("tokens") == "bpe":
        given.setdefault("vocabulary", _VOCABULARY)
    return LanguageModel(data=data, **given)


def _feed_forward(data: str, given: Mapping[str, Any]) -> FeedForward:
    """Return the payload of a comparison on labelled examples.

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


def schedules(tier: str, data: str, given: Mapping[str, Any], arch: str = "fcn") -> list[Schedule]:
    """Return a schedule for each number of steps, all with as many evaluations as the tier's schedule.

    Args:
        tier: name of the tier.
        data: name of the data set.
        given: fields of the schedule that replace those of the tier; ``steps`` is a number or a tuple.
        arch: kind of network.
    """
    default = _GPT_SCHEDULES[tier] if arch == "gpt" else SCHEDULES.get(data, SCHEDULES[""])[tier]
    steps = given.get("steps", default.steps)
    rest = {name: value for name, value in given.items() if name != "steps"}
    return [
        replace(default, steps=n, eval_every=max(1, default.eval_every * max(n, 0) // default.steps), **rest)
        for n in (steps if isinstance(steps, tuple) else (steps,))
    ]

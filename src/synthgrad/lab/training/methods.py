"""Methods for feed-forward networks by name, with the rule of each and its default settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ...core import ConfigError, InputRule, Rule
from ...rules import (
    HandOver,
    HeadGradient,
    InterlockedLoss,
    LateCorrection,
    LocalLoss,
    NoBackprop,
    Sobolev,
    StaleGradient,
    SyntheticGradient,
    SyntheticInput,
    TrueGradient,
    heads,
)
from ...rules.models import class_means, like_layer
from ...rules.sobolev import Critic
from ..names import METHODS as NAMES
from ..tasks.gpt import UNEMBEDDING as GPT_UNEMBEDDING
from .settings import GAIN, RuleSettings

__all__ = ["METHODS", "DataFacts", "Method", "method_named"]


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Facts about the training data that a rule may need.

    Attributes:
        classes: number of classes.
        num_examples: number of training examples.
    """

    classes: int
    num_examples: int


RuleFactory = Callable[[RuleSettings, DataFacts], Rule]
InputRuleFactory = Callable[[RuleSettings], InputRule]


@dataclass(frozen=True, slots=True)
class Method:
    """A method to train a feed-forward network.

    Attributes:
        name: name on the command line.
        rule: function that makes the rule of each cut; None for backpropagation.
        defaults: settings of the rule by data set (``"mnist"``), network (``"cnn"``, ``"lstm"``), or both
            (``"cifar10 cnn"``); the entry ``""`` is for all others. They were chosen on held-out training examples
            (``synthgrad run dni_search`` and ``cnn_search``), never on test data.
        per_example_loss: whether the rule learns from the loss of each example, which the criterion must then return.
        inputs: function that makes the input rule of each cut; None if modules get the real outputs of those below.
        unfit: kinds of networks that the method cannot train, each with the reason.
        engines: the engines that can train with its rule; empty if all can.
    """

    name: str
    rule: RuleFactory | None = None
    defaults: Mapping[str, RuleSettings] = field(default_factory=lambda: {"": RuleSettings()})
    per_example_loss: bool = False
    inputs: InputRuleFactory | None = None
    unfit: Mapping[str, str] = field(default_factory=dict[str, str])
    engines: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        """Description of the method in one line."""
        return NAMES[self.name]

    def settings(self, data: str, arch: str = "fcn") -> RuleSettings:
        """Return the rule's default settings for a data set and a network.

        Users' own networks get the settings of the fully connected network. Convolutional networks do not, because
        widths would be numbers of channels there.
        """
        names = (f"{data} {arch}", arch) if arch in ("cnn", "lstm", "gpt") else (data,)
        return next((self.defaults[name] for name in names if name in self.defaults), self.defaults[""])

    def check(self, arch: str, engine: str) -> None:
        """Raise a ConfigError if the method cannot train a kind of network, or not with an engine."""
        if arch in self.unfit:
            fitting = [m.name for m in METHODS.values() if arch not in m.unfit]
            raise ConfigError(
                f"method '{self.name}' is not for --arch {arch}: {self.unfit[arch]}; use one of {', '.join(fitting)}"
            )
        if self.engines and engine not in self.engines:
            raise ConfigError(
                f"method '{self.name}' with the {engine} engine: its modules run backward more than once for a batch, which "
                f"only some engines do; use --engine {' or '.join(self.engines)}"
            )

    def make_rule(self, settings: RuleSettings, facts: DataFacts) -> Rule:
        """Return a new rule for the cuts, inside a `HandOver` if the settings ask for one."""
        assert self.rule is not None
        rule = self.rule(settings, facts)
        if not settings.hands_over:
            return rule
        return HandOver(
            rule,
            warm_up=settings.warm_up,
            freeze_after=settings.freeze_after,
            min_cosine=settings.min_cosine,
        )


def _synthetic(settings: RuleSettings, context: int | None) -> Rule:
    if settings.like_layer:
        return SyntheticGradient(context=context, model=like_layer())
    means = settings.label_rate > 0 and context is not None and not settings.hidden
    if means and (settings.label_rate, settings.gain) != (1.0, GAIN):
        return SyntheticGradient(
            context=context, model=class_means(rate=settings.label_rate, gain=settings.gain)
        )
    return SyntheticGradient(
        settings.hidden,
        context,
        norm=settings.norm,
        kernel=settings.kernel,
        maps=settings.maps,
        learned_table=not settings.label_rate,
    )


def _head(settings: RuleSettings) -> heads.HeadFactory:
    if settings.head == "tokens":
        name = None if settings.unembedding == "own" else GPT_UNEMBEDDING
        return heads.token_head(settings.blocks, unembedding=name)
    if settings.head == "convolutional":
        return heads.convolutional_head(pool=settings.pool, norm=settings.norm)
    return heads.linear_head(settings.hidden, pool=settings.pool, norm=settings.norm)


def _sobolev(settings: RuleSettings, classes: int) -> Rule:
    critic: Critic = "value" if settings.critic == "value" else "classifier"
    if settings.head == "tokens" and settings.blocks:
        raise ConfigError(
            f"method 'sobolev' with {settings.blocks} private blocks: it learns from the gradient of a gradient, which fused "
            "attention does not have; use --blocks 0"
        )
    return Sobolev(classes, critic=critic, head=_head(settings))


def _synthetic_input(settings: RuleSettings) -> InputRule:
    return SyntheticInput(settings.input_hidden, norm=settings.norm)


# Between LSTMs a linear M with the network's learning rate grows too fast: activations are small at first, so its weights
# become large, and later drive the units into saturation. Chosen on validation characters, at a lag of 3.
_BETWEEN_LSTMS = RuleSettings(hidden=(256,), lr_factor=0.3)

#: Of methods with a head at each cut. A head for tokens has a private block (`RuleSettings.blocks`).
_HEADS = {
    "": RuleSettings(),
    "cnn": RuleSettings(head="convolutional"),
    "gpt": RuleSettings(head="tokens"),
}

#: Input models predict an activation from the network's input, as numbers.
_NO_INPUTS = {"gpt": "it predicts activations from numbers, and the inputs are tokens"}

_DNI = {"": RuleSettings(), "mnist": RuleSettings(hidden=(2048,), lr_factor=30.0)}

# The entries "cnn" are the settings with the lowest error in cnn_search (DNI, cDNI, local loss, critic).
METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method("backprop"),
        Method("no_bprop", lambda s, facts: NoBackprop()),
        Method(
            "dni",
            lambda s, facts: _synthetic(s, None),
            {**_DNI, "cnn": RuleSettings(kernel=3)},
        ),
        Method(
            "cdni",
            lambda s, facts: _synthetic(s, facts.classes),
            {
                "": RuleSettings(label_rate=1.0),
                "cnn": RuleSettings(kernel=1, maps=True),
                "lstm": _BETWEEN_LSTMS,
            },
        ),
        Method(
            "stale",
            lambda s, facts: StaleGradient(facts.num_examples, s.decay),
            unfit={"gpt": "it keeps a gradient for each example, and windows of a text are drawn anew"},
        ),
        Method(
            "local_loss",
            lambda s, facts: LocalLoss(facts.classes, _head(s)),
            _HEADS,
        ),
        Method(
            "sobolev",
            lambda s, facts: _sobolev(s, facts.classes),
            {
                "": RuleSettings(),
                "cnn": RuleSettings(head="convolutional", pool=4),
                "gpt": RuleSettings(head="tokens", blocks=0),
            },
            per_example_loss=True,
        ),
        Method("delayed", lambda s, facts: TrueGradient(s.shrink), {"": RuleSettings(delay=1)}),
        Method(
            "dni_unlock",
            lambda s, facts: _synthetic(s, None),
            {
                "": RuleSettings(),
                "mnist": RuleSettings(
                    hidden=(2048,), lr_factor=10.0, input_hidden=(1024,), input_lr_factor=3.0
                ),
                "cnn": RuleSettings(input_hidden=(16,), input_lr_factor=3.0),
            },
            inputs=_synthetic_input,
            unfit=_NO_INPUTS,
        ),
        Method(
            "cdni_unlock",
            lambda s, facts: _synthetic(s, facts.classes),
            {
                "": RuleSettings(lr_factor=3.0),
                "cnn": RuleSettings(kernel=1, maps=True, input_hidden=(16,), input_lr_factor=3.0),
            },
            inputs=_synthetic_input,
            unfit=_NO_INPUTS,
        ),
        Method(
            "interlocked",
            lambda s, facts: InterlockedLoss(facts.classes, _head(s)),
            _HEADS,
            engines=("in-process", "stages"),
        ),
        Method("head_gradient", lambda s, facts: HeadGradient(facts.classes, _head(s)), _HEADS),
        Method(
            "late_correction",
            lambda s, facts: LateCorrection(
                LocalLoss(facts.classes, _head(s)), s.weight, s.share, recompute=s.recompute
            ),
            {network: replace(settings, delay=1, weight=None) for network, settings in _HEADS.items()},
            engines=("in-process", "stages"),
        ),
    )
}


def method_named(name: str) -> Method:
    """Return a method by its name.

    Raises:
        ConfigError: if the name is unknown.
    """
    if name not in METHODS:
        raise ConfigError(f"method '{name}' is unknown; accepted: {', '.join(METHODS)}")
    return METHODS[name]

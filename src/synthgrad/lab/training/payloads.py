"""Payloads: the network and the data of a run, a frozen dataclass for each kind of task.

A payload names its task; the class that trains it is in `synthgrad.lab.training.tasks`. Records have the fields that
identify a cell of a result table under ``cell``, and all others under ``config``.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from ..names import DATA, TEXTS, TOKENS, is_own_data
from ..options import Option
from .settings import BoundarySettings, EdgeSettings, RuleSettings, Settings, refuse

__all__ = [
    "ACTIVATIONS",
    "ANSWERS",
    "ARCHS",
    "ENGINES",
    "NORMS",
    "Characters",
    "Copying",
    "FeedForward",
    "LanguageModel",
    "LstmStack",
    "Multirate",
    "Payload",
    "Sequences",
]

ARCHS = ("fcn", "cnn", "gpt")
#: Normalisations and activations of a fully connected network.
NORMS = ("batch", "layer", "none")
ACTIVATIONS = ("relu", "gelu", "tanh")
#: What the hidden layers of a fully connected network send down.
ANSWERS = ("gradients", "targets", "feedback")
ENGINES = ("in-process", "layer-parallel", "plain", "stages")
_GPT_ENGINES = ("in-process", "plain", "stages")

_PLACE = "place"


def cell_field(default: Any = MISSING, *, changed: bool = False, **metadata: Any) -> Any:
    """Return a dataclass field that is recorded under ``cell``.

    Args:
        default: the field's default.
        changed: as in `config_field`.
        metadata: further metadata of the field.
    """
    return field(default=default, metadata={_PLACE: "cell", "changed": changed, **metadata})


def config_field(default: Any, name: str = "", *, changed: bool = False, **metadata: Any) -> Any:
    """Return a dataclass field that is recorded under ``config``.

    Args:
        default: the field's default.
        name: name in records; empty for the field's own name.
        changed: whether to record it only if its value is not the default. This must be True for fields added later,
            so that earlier records are still recognised.
        metadata: further metadata of the field.
    """
    return field(default=default, metadata={_PLACE: "config", "name": name, "changed": changed, **metadata})


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """The network and the data of a run.

    Attributes:
        data: name of the data set, text or task.
        arch: kind of network.
        layers: number of layers, or None if the network's own code decides.
        width: number of units in a layer, or None.
        task: name of the module in ``lab/training/tasks`` that trains this payload.
        settings: class of the rule's settings.
        unrecorded: names of fields of the schedule that records leave out.
        without_rule: the method without a rule, for which records leave out the rule's settings; empty for none.
        any_optimizer: whether the task accepts other optimizers than Adam, and updates from several batches.
    """

    data: str = cell_field()
    arch: str = cell_field()
    layers: int | None = cell_field(None)
    width: int | None = cell_field(None)
    task: ClassVar[str]
    settings: ClassVar[type[Settings]]
    unrecorded: ClassVar[tuple[str, ...]] = ()
    without_rule: ClassVar[str] = ""
    any_optimizer: ClassVar[bool] = False

    def cell(self) -> dict[str, Any]:
        """Return the ``cell`` of a record."""
        found = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.metadata.get(_PLACE) == "cell"
            and not (f.metadata.get("changed") and getattr(self, f.name) == f.default)
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    def config(self) -> dict[str, Any]:
        """Return the payload's part of the ``config`` of a record."""
        found: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.metadata.get(_PLACE) == "config" and not (f.metadata["changed"] and value == f.default):
                found[f.metadata["name"] or f.name] = value
        return found

    def label(self, method: str, seed: int) -> str:
        """Return a short name of the run for progress bars."""
        return f"{method}, seed {seed}"

    def for_method(self, method: str) -> Self:
        """Return this payload with the changes that a method needs."""
        return self

    def default_rule(self, method: str) -> Settings:
        """Return the default settings of a method's rule for this payload."""
        return self.settings()

    def with_data(self, name: str) -> Self | None:
        """Return this payload with the user's own data; None if it does not accept them."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward(Payload):
    """A feed-forward network on labelled examples.

    Attributes:
        data: name of a data set in ``synthgrad list``, or the user's own.
        arch: ``fcn``, ``cnn``, or ``package.module:factory`` for a user's model.
        layers: number of weight layers, including the output layer; None for a user's model.
        width: number of units (filters) in a hidden layer; None for a user's model.
        at: names of the submodules after which to cut; empty for the default cuts.
        update_prob: probability that a module updates in a step, with the in-process engine.
        engine: one of `ENGINES`.
        hold_out: number of training examples to evaluate on instead of the test set, to choose settings.
        monitor_every: number of steps between measurements of the interfaces' quality; 0 for none.
        target_error_pct: error in percent; the time until it is reached is recorded.
        compiled: whether the network runs under ``torch.compile``.
        augment: whether training images are flipped and shifted at random.
        normalisation: of a fully connected layer, one of `NORMS`.
        activation: of a fully connected layer, one of `ACTIVATIONS`.
        answers: what a hidden layer sends to the one below, one of `ANSWERS`: gradients, differences to targets that an
            inverse finds, which learns, or what one does that never learns.
    """

    task = "feed_forward"
    settings = RuleSettings
    any_optimizer = True

    data: str = cell_field(
        option=Option(
            "Data set; see synthgrad list. Your own: FILE.npz, .pt or .safetensors, or package.module:factory; for a GPT, "
            "a text or any file with one.",
            choices=(*DATA, *TEXTS),
            metavar="NAME",
            default="mnist-10k; for a GPT, shakespeare-50k",
        )
    )
    arch: str = cell_field(
        "fcn",
        option=Option(
            "Fully connected network, convolutional network, or language model.", choices=ARCHS, default="fcn"
        ),
    )
    layers: int | None = cell_field(
        4,
        option=Option(
            "Weight layers, the output layer included; of a GPT, its blocks.",
            kind=int,
            metavar="N",
            default="4",
        ),
    )
    width: int | None = cell_field(
        256,
        option=Option(
            "Units, filters or features of a hidden layer.",
            kind=int,
            metavar="N",
            default="the paper's; for a GPT, 128",
        ),
    )
    at: tuple[str, ...] = cell_field(
        (), option=Option("Submodules after which to cut.", listed=True, default="after every layer")
    )
    update_prob: float = cell_field(
        1.0,
        option=Option("Probability that a module updates in a step.", kind=float, metavar="X", default="1"),
    )
    engine: str = cell_field(
        "in-process",
        option=Option(
            "in-process trains without locks; layer-parallel trains all layers in one batch; stages has a process for "
            "each part (two, or as --at cuts); plain is an ordinary loop.",
            choices=ENGINES,
            default="in-process",
        ),
    )
    hold_out: int = config_field(0)
    monitor_every: int = config_field(100)
    target_error_pct: float = config_field(5.0)
    compiled: bool = config_field(
        False,
        changed=True,
        option=Option("Run the network under torch.compile.", flag="--compile", kind=bool),
    )
    augment: bool = config_field(
        False, changed=True, option=Option("Flip and shift training images at random.", kind=bool)
    )
    normalisation: str = cell_field(
        "batch",
        changed=True,
        option=Option(
            "Normalisation in a fully connected network.", flag="--norm", choices=NORMS, default="batch"
        ),
    )
    activation: str = cell_field(
        "relu",
        changed=True,
        option=Option("Activation in a fully connected network.", choices=ACTIVATIONS, default="relu"),
    )
    answers: str = cell_field(
        "gradients",
        changed=True,
        option=Option(
            "What a hidden layer sends down: gradients; targets, by an inverse that learns (difference target propagation); or "
            "feedback, by one that does not.",
            choices=ANSWERS,
            default="gradients",
        ),
    )

    def __post_init__(self) -> None:
        for name, known in (("normalisation", NORMS), ("activation", ACTIVATIONS), ("answers", ANSWERS)):
            value = getattr(self, name)
            if value not in known:
                refuse(f"{name} '{value}' is unknown; accepted: {', '.join(known)}")
            if value != known[0] and self.arch != "fcn":
                refuse(
                    f"{name} '{value}' with network '{self.arch}': only the fully connected network has a choice; leave it "
                    "out, or use --arch fcn"
                )
        if self.answers != ANSWERS[0] and self.normalisation == "batch":
            refuse(
                f"answers '{self.answers}' with BatchNorm: the layers below an inverse run a second time, which would change "
                "running statistics; use --norm layer or --norm none"
            )
        if self.answers != ANSWERS[0] and (self.engine == "layer-parallel" or self.compiled):
            refuse(
                f"answers '{self.answers}' with {'--compile' if self.compiled else 'engine layer-parallel'}: no graph has them; "
                "use --engine in-process, stages or plain, without --compile"
            )
        if not 0 < self.update_prob <= 1:
            refuse(f"update probability {self.update_prob}: expected a number over 0 and up to 1")
        if self.engine not in ENGINES:
            refuse(f"engine '{self.engine}' is unknown; accepted: {', '.join(ENGINES)}")

    def for_method(self, method: str) -> Self:
        """Return this payload for a method; without a rule there are no cuts, and the engine is ``plain``.

        Raises:
            ConfigError: if the method cannot train this network with this engine.
        """
        from .methods import method_named  # imported here because it loads PyTorch

        found = method_named(method)
        found.check(self.arch, self.engine)
        return self if found.rule is not None else replace(self, engine="plain", at=())

    def default_rule(self, method: str) -> Settings:
        from .methods import method_named

        return method_named(method).settings(self.data, self.arch)

    def with_data(self, name: str) -> Self | None:
        return replace(self, data=name) if is_own_data(name) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel(Payload):
    """A GPT on a text; a step is a batch of windows of ``context`` tokens.

    Attributes:
        data: name of a text in ``synthgrad list``, or the path of a file.
        layers: number of blocks.
        width: number of features ``D``.
        heads: number of attention heads of a block.
        context: number of tokens ``T`` in a window.
        tokens: what a token is, one of `TOKENS`.
        vocabulary: number of byte-pair tokens; None for other tokens.
        tied: whether the scores are made with the weights of the embedding.
        tied_lag: after how many updates these learn what the first and the last module have found.
        free_running: whether stages learn from answers when they come; else each answer is as late as the delay says.
        modules: number of modules of about equal numbers of blocks; None if ``at`` names the cuts, or there are none.
        at: names of the submodules after which to cut, instead of ``modules``.
        engine: ``in-process``, ``stages`` or ``plain``.
        most_valid: number of tokens at the beginning of the validation part to evaluate on; None for all.
        monitor_every: 0 for no measurement of the credits' quality; otherwise it is part of every evaluation.
    """

    task = "language_model"
    settings = RuleSettings
    without_rule = "backprop"
    any_optimizer = True

    arch: str = cell_field("gpt")
    layers: int = cell_field(4)
    width: int = cell_field(128)
    heads: int = cell_field(
        4, option=Option("Attention heads of a GPT's block.", kind=int, metavar="N", default="4")
    )
    context: int = cell_field(
        64, option=Option("Tokens that a GPT reads at once.", kind=int, metavar="N", default="64")
    )
    tokens: str = cell_field(
        "characters",
        option=Option(
            "What a GPT predicts; bpe is learned from the text.", choices=TOKENS, default=TOKENS[0]
        ),
    )
    vocabulary: int | None = cell_field(
        None, option=Option("Number of bpe tokens.", kind=int, metavar="N", default="512")
    )
    tied: bool = cell_field(
        False, option=Option("Make a GPT's scores with the weights of its embedding.", kind=bool)
    )
    tied_lag: int = config_field(
        0,
        changed=True,
        option=Option(
            "Updates after which tied weights learn; stages run ahead of each other by as many at most.",
            kind=int,
            metavar="N",
            default="0",
        ),
    )
    free_running: bool = config_field(
        False,
        changed=True,
        option=Option(
            "With --engine stages: learn from answers when they come, at most as late as --delay. Runs then differ.",
            kind=bool,
        ),
    )
    modules: int | None = cell_field(
        2,
        option=Option(
            "Modules of equal numbers of blocks into which a GPT is cut, unless --at names the cuts.",
            kind=int,
            metavar="N",
            default="2",
        ),
    )
    at: tuple[str, ...] = cell_field(())
    engine: str = cell_field("in-process")
    most_valid: int | None = config_field(None)
    monitor_every: int = config_field(100)

    def __post_init__(self) -> None:
        _check_positive(self, "layers", "width", "heads", "context")
        if self.arch != "gpt":
            refuse(f"network '{self.arch}' on a text: expected gpt")
        if self.tied_lag < 0 or (self.tied_lag and not self.tied):
            refuse(
                f"tied_lag {self.tied_lag}{'' if self.tied else ' with weights that are not tied'}: expected a number of updates "
                "from 0, with --tied"
            )
        if self.free_running and self.engine != "stages":
            refuse(
                f"free_running with engine '{self.engine}', in which nothing is late but by a given number of steps: expected "
                "--engine stages, or no --free-running"
            )
        if self.engine not in _GPT_ENGINES:
            refuse(f"engine '{self.engine}' with a GPT: expected one of {', '.join(_GPT_ENGINES)}")
        if self.modules is not None and not 2 <= self.modules <= self.layers:
            refuse(
                f"{self.modules} modules of {self.layers} blocks: expected 2 to {self.layers}, with a block in each"
            )

    def for_method(self, method: str) -> Self:
        """Return this payload for a method; without a rule there are no cuts, and the engine is ``plain``.

        Raises:
            ConfigError: if the method is not for language models, or not for this engine.
        """
        from .methods import method_named

        found = method_named(method)
        found.check(self.arch, self.engine)
        if found.rule is not None:
            return self
        return replace(self, engine="plain", at=(), modules=None, free_running=False)

    def default_rule(self, method: str) -> Settings:
        from .methods import method_named

        return method_named(method).settings(self.data, self.arch)

    def with_data(self, name: str) -> Self | None:
        return None if is_own_data(name) else replace(self, data=name)


def _check_positive(payload: Payload, *names: str) -> None:
    for name in names:
        if getattr(payload, name) < 1:
            refuse(f"{name} {getattr(payload, name)}: expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences(Payload):
    """A recurrent network on sequences.

    Attributes:
        data: name of a task or text.
        arch: ``lstm``, ``gru`` or ``rnn``.
        layers: number of recurrent layers.
        width: number of units in a layer.
        unroll: ``T``, number of steps in an unroll.
    """

    settings = BoundarySettings

    arch: str = cell_field("lstm")
    layers: int = cell_field(1)
    width: int = cell_field(256)
    unroll: int = cell_field(5)

    def __post_init__(self) -> None:
        _check_positive(self, "layers", "width", "unroll")

    def label(self, method: str, seed: int) -> str:
        return f"{method} T={self.unroll}, seed {seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Copying(Sequences):
    """Copy or Repeat Copy; a step is a batch of episodes.

    Attributes:
        symbols: number of characters in the alphabet.
        threshold: bits per character under which a length is solved.
        spread: number of unrolls over which the rows of a batch begin; 1 if all begin together.
    """

    task = "copying"

    symbols: int = config_field(2)
    threshold: float = config_field(0.15, "threshold_bits")
    spread: int = config_field(16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Characters(Sequences):
    """A character language model; a step is an unroll.

    Attributes:
        data: name of a text in ``synthgrad list``, or the path of a file.
        most_valid: number of characters at the beginning of the validation part to evaluate on; None for all.
    """

    task = "characters"

    most_valid: int | None = config_field(None)

    def with_data(self, name: str) -> Self | None:
        return replace(self, data=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class LstmStack(Sequences):
    """A stack of LSTMs on a text, with cuts between them; a step is an unroll.

    Attributes:
        engine: one of `ENGINES`.
        at: names of the layers after which to cut; empty for every layer but the last.
        most_valid: number of characters at the beginning of the validation part to evaluate on; None for all.
    """

    task = "lstm_stack"
    settings = RuleSettings
    any_optimizer = True
    unrecorded = ("milestones",)
    without_rule = "backprop"

    engine: str = cell_field("in-process")
    at: tuple[str, ...] = cell_field(())
    most_valid: int | None = config_field(None)

    def for_method(self, method: str) -> Self:
        return replace(self, engine="plain") if method == self.without_rule else self

    def default_rule(self, method: str) -> Settings:
        from .methods import method_named

        return method_named(method).settings(self.data, self.arch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Multirate(Payload):
    """Two networks that run at different rates and count digits; a step is a block of ``T²`` images of each stream.

    Attributes:
        data: name of a data set of digits.
        width: number of units in each network.
        period: ``T``, number of steps between two steps of B, and between two reports of A.
        hold_out: number of training images to evaluate on instead of the test set, to choose settings.
    """

    task = "multirate"
    settings = EdgeSettings
    without_rule = "bptt"

    arch: str = cell_field("clocked")
    width: int = cell_field(128)
    period: int = cell_field(4)
    hold_out: int = config_field(0, changed=True)

    def __post_init__(self) -> None:
        _check_positive(self, "width", "period")

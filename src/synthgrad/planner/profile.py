"""What the modules of a model cost on this machine, measured: the table that cuts are planned with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core import CutError, Decoupled, Info, Rule, Site, decouple
from ..core.devices import cuda_devices
from ..core.given import check_whole, cut_names, example_arguments, instance_of
from ..core.graph import OUTPUT, first_tensor
from .candidates import check_candidates, find_candidates
from .costs import StageCost
from .passes import Criterion, ExampleBatch, Passes
from .rule_costs import OptimizerFactory, Silent, rule_cost
from .table import CostTable, ModuleCost

__all__ = ["profile_model"]

#: Returns the rule for an interface, not bound yet.
RuleFactory = Callable[[Site], Rule]


def _adam(parameters: Any) -> Optimizer:
    return torch.optim.Adam(parameters, 3e-4)


def profile_model(
    model: nn.Module,
    example: Tensor | Sequence[Any] | Mapping[str, Any],
    *,
    target: Any = None,
    criterion: Criterion | None = None,
    rule: Rule | RuleFactory | None = None,
    candidates: Sequence[str] | None = None,
    optimizer: OptimizerFactory = _adam,
    context: Tensor | None = None,
    repeats: int = 10,
) -> CostTable:
    """Measure what the parts of a model between its possible cuts cost.

    Times are medians on the device of the model, with the number of threads that PyTorch has now. A quarter of the batch is
    measured too: of a time ``T(n) = c + n·s`` for ``n`` examples, ``c`` is the part that does not depend on them; it is zero if
    the model cannot be run on a quarter. What is frozen has no backward pass, and its parameters are not counted. A rule is
    asked and learns at each cut as in an engine whose messages come late: without what it left pending.

    Args:
        model: any network; copies of it are run, in training mode.
        example: one batch, as `decouple` takes it. Its size is that of the table.
        target: for the criterion, and the context of rules if it is a tensor.
        criterion: takes output and target, returns the loss, a scalar or ``(B,)``. None for the ``loss`` in the output, as
            Hugging Face models return it if they are given labels, or else the mean square of the only tensor in it.
        rule: the rule at every cut, or a function that returns one for a `Site`; None to leave rules out.
        candidates: names of submodules after which a cut can be made; None to find them, see `find_candidates`.
        optimizer: takes parameters, returns an optimizer or several. It is called for each part and each rule.
        context: of the rules, ``(B, ...)``, if that is not the target.
        repeats: the number of passes of each kind.

    Returns:
        A table with a row for each candidate, and one for the rest, named ``"output"``.

    Raises:
        CutError: if no cut can be made, or a candidate cannot be one.
        ConfigError: if between candidates there are no stages that train apart, nothing in the model learns, the output
            has no loss and no criterion is given, or another setting is out of range.
        ContextError: if a rule lacks what it needs to know.

    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> table = profile_model(model, torch.ones(16, 4), repeats=1)
    >>> tuple((row.name, row.cost.output_bytes, row.cost.parameter_bytes) for row in table.modules)
    (('1', 512, 160), ('output', 0, 72))
    """
    check_whole("repeats", repeats, 1, "number of passes that are timed")
    args, kwargs = example_arguments(example)
    devices = cuda_devices(model) if isinstance(model, nn.Module) else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        net, rules = _cut(model, example, rule, candidates)
        batch = ExampleBatch.of(net.graph, args, kwargs, target)
        passes = Passes(net, criterion, optimizer)
        parts = passes.measure(batch, repeats)
        if rule is not None:
            if context is None and isinstance(target, Tensor):
                context = target
            first = first_tensor(args, kwargs)
            ids = torch.arange(batch.size, device=passes.clock.device)
            info = Info(context, ids, 0, None if first is None else first.detach())
            answered = passes.answers(batch, rules)
            for part, (name, bound) in zip(parts, rules.items(), strict=False):
                part |= rule_cost(bound, net.units, answered[name], info, optimizer, repeats, passes.clock)
    rows = [ModuleCost(name, _cost(part)) for name, part in zip([*rules, OUTPUT], parts, strict=True)]
    return CostTable(tuple(rows), batch.size, type(model).__name__)


def _cost(part: Mapping[str, float]) -> StageCost:
    """Return a cost with times in whole nanoseconds."""
    found = {n: round(v, 9) if n.endswith("_s") else v for n, v in part.items()}
    return StageCost(**found)


def _cut(
    model: nn.Module,
    example: Any,
    rule: Rule | RuleFactory | None,
    candidates: Sequence[str] | None,
) -> tuple[Decoupled, dict[str, Rule]]:
    """Return the network with all candidates as cuts, and the rules there; in the order of the forward pass.

    Of candidates that were found, those are left out for which the rule cannot be made.
    """
    if isinstance(rule, nn.Module | type) or (rule is not None and not callable(rule)):
        rule = instance_of(Rule, rule, "rule", "synthgrad.SyntheticGradient(...)")
    names = find_candidates(model, example) if candidates is None else cut_names(model, candidates)
    while True:
        net = decouple(model, names, Silent(), example)
        check_candidates(net.graph)
        bound: dict[str, Rule] = {}
        refused: CutError | None = None
        for name, site in net.graph.sites.items():
            try:
                bound[name] = _rule_at(site, rule)
            except CutError as error:
                if candidates is not None:
                    raise
                refused = error
        if refused is None:
            if not net.model.training:
                net.model.train()
            return net, bound
        if not bound:
            raise refused
        names = list(bound)


def _rule_at(site: Site, rule: Rule | RuleFactory | None) -> Rule:
    if rule is None:
        return Silent()
    pattern = rule if isinstance(rule, Rule) else rule(site)
    return instance_of(Rule, pattern, "rule", "lambda site: synthgrad.SyntheticGradient(...)").bind(site)

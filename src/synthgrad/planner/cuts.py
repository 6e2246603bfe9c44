"""Where to cut: the stages between the cuts, and the wires at them, are to be as even as they can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

from ..core import ConfigError
from ..core.given import brief, check_whole
from .table import CostTable

__all__ = ["all_cuts", "balanced_cuts", "slowest_s"]

#: Returns the seconds for which some bytes occupy a wire.
LinkTime = Callable[[float], float]


def _no_link(_bytes: float) -> float:
    return 0.0


def balanced_cuts(
    table: CostTable,
    stages: int,
    *,
    speeds: Sequence[float] | None = None,
    link_s: LinkTime = _no_link,
    decoupled: bool = True,
) -> list[str]:
    """Return the cuts with the shortest step: that of the slowest stage, or of the slowest wire.

    In a full pipeline a step takes as long as its slowest resource,

        T = max(max_k (C_k + R_k) / v_k, max_k w(b_k)),

    where ``C_k`` are the seconds of the passes and the update of stage ``k``, ``R_k`` those of the rule at its end (none in
    the last stage), ``v_k`` is the speed of its machine, ``b_k`` the bytes at its end, and ``w`` how long these occupy the
    wire. The minimum over all cuts is exact, by dynamic programming over the ends of the stages. Of cuts with the same
    ``T`` those are taken with the fewest bytes in all, and of these the ones with the fastest slowest stage.

    Args:
        table: of the costs.
        stages: the number ``K`` of stages.
        speeds: of the machines from the bottom up, ``K`` numbers; 1 is the machine of the table. None for equal ones.
        link_s: returns the seconds for which some bytes occupy a wire in one direction; activations and gradients, which
            have as many bytes, do not hinder each other. By default none.
        decoupled: whether there is a rule at each cut; else stages wait for true gradients, and rules cost nothing.

    Returns:
        ``K - 1`` names, in the order of the forward pass.

    Raises:
        ConfigError: if there are fewer than two stages, or more than the table has rows; if the number of speeds is not
            that of the stages, or one is not over 0; or if ``link_s`` returns no number of seconds.

    >>> from synthgrad.planner.costs import StageCost
    >>> from synthgrad.planner.table import ModuleCost
    >>> rows = [ModuleCost(name, StageCost(forward_s=t, backward_s=0.0)) for name, t in zip("abcd", (3, 1, 1, 1))]
    >>> balanced_cuts(CostTable(tuple(rows), batch_size=1), 2)
    ['a']
    """
    costs = _Costs(table, stages, speeds, link_s, decoupled)
    limit_s = _fastest(costs)
    return [table.modules[end].name for end in _fewest_bytes(costs, limit_s)]


def all_cuts(table: CostTable, stages: int) -> list[list[str]]:
    """Return every way to cut a model into stages, for trying all of them.

    Raises:
        ConfigError: as `balanced_cuts`.
    """
    _check_stages(table, stages)
    return [list(names) for names in combinations(table.names, stages - 1)]


def slowest_s(
    table: CostTable,
    cuts: Sequence[str],
    *,
    speeds: Sequence[float] | None = None,
    link_s: LinkTime = _no_link,
    decoupled: bool = True,
) -> float:
    """Return the seconds of the slowest stage or wire, the ``T`` that `balanced_cuts` minimises.

    Args:
        table: of the costs.
        cuts: names, in the order of the forward pass.
        speeds: of the machines, as for `balanced_cuts`.
        link_s: returns the seconds for which some bytes occupy a wire.
        decoupled: whether there is a rule at each cut.

    Raises:
        ConfigError: as `balanced_cuts`, and if a name is unknown or out of order.
    """
    table.stages(cuts)  # refuses names that are unknown or out of order
    costs = _Costs(table, len(cuts) + 1, speeds, link_s, decoupled)
    ends = [-1, *(table.position(name) for name in cuts), len(table.modules) - 1]
    times = [costs.stage_s(k, a + 1, b) for k, (a, b) in enumerate(pairwise(ends))]
    return max([*times, *(costs.wires_s[end] for end in ends[1:-1])])


class _Costs:
    """Seconds and bytes of all stages that are possible.

    Attributes:
        count: of rows of the table.
        speeds: of the stages.
        wires_s: seconds for which the bytes at the end of each row occupy the wire; 0 after the last.
        sizes: these bytes.
        sums: of the seconds of a step from row ``a`` to row ``b``, at ``sums[a][b - a]``.
        rules: seconds of the rule at the end of each row; 0 after the last.
    """

    def __init__(
        self,
        table: CostTable,
        stages: int,
        speeds: Sequence[float] | None,
        link_s: LinkTime,
        decoupled: bool,
    ) -> None:
        _check_stages(table, stages)
        self.speeds = _checked_speeds(speeds, stages)
        costs = [module.cost for module in table.modules]
        self.count = len(costs)
        self.sizes = [*(float(c.output_bytes) for c in costs[:-1]), 0.0]
        self.wires_s = [*(_seconds(link_s, size) for size in self.sizes[:-1]), 0.0]
        rules = [c.credit_s + c.observe_s + c.local_s if decoupled else 0.0 for c in costs]
        self.rules = [*rules[:-1], 0.0]
        self.sums: list[list[float]] = []
        for a in range(self.count):
            row: list[float] = []
            total = 0.0
            for cost in costs[a:]:
                total += cost.step_s
                row.append(total)
            self.sums.append(row)

    def stage_s(self, stage: int, first: int, last: int) -> float:
        """Return the seconds of a stage that is made of the rows from ``first`` to ``last``."""
        return (self.sums[first][last - first] + self.rules[last]) / self.speeds[stage]

    def ends(self, stage: int) -> range:
        """Return the rows at which a stage can end, so that each stage before and after it has a row."""
        stages = len(self.speeds)
        if stage == stages - 1:
            return range(self.count - 1, self.count)
        return range(stage, self.count - (stages - 1 - stage))


def _fastest(costs: _Costs) -> float:
    """Return the shortest step: the least of the slowest stage or wire, over all cuts."""
    best = {-1: 0.0}  # by the row at which the stages so far end
    for stage in range(len(costs.speeds)):
        best = {
            end: min(
                max(before, costs.stage_s(stage, start + 1, end), costs.wires_s[end])
                for start, before in best.items()
                if start < end
            )
            for end in costs.ends(stage)
        }
    return best[costs.count - 1]


def _fewest_bytes(costs: _Costs, limit_s: float) -> list[int]:
    """Return the rows after which to cut, so that nothing is slower than a limit and the fewest bytes cross.

    Of equal bytes the fastest slowest stage decides. This order lets dynamic programming be exact: in a sum that is the
    least, every part of it is the least.
    """
    # By the row at which the stages so far end: bytes, seconds of the slowest stage, ends of the stages.
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {-1: (0.0, 0.0, ())}
    for stage in range(len(costs.speeds)):
        reached: dict[int, tuple[float, float, tuple[int, ...]]] = {}
        for end in costs.ends(stage):
            if costs.wires_s[end] > limit_s:
                continue
            found = [
                (size + costs.sizes[end], max(slowest, stage_s), (*ends, end))
                for start, (size, slowest, ends) in best.items()
                if start < end and (stage_s := costs.stage_s(stage, start + 1, end)) <= limit_s
            ]
            if found:
                reached[end] = min(found)
        best = reached
    return list(best[costs.count - 1][2][:-1])


def _check_stages(table: CostTable, stages: int) -> None:
    check_whole("stages", stages, 2, "number of stages between cuts")
    most = len(table.modules)
    if stages > most:
        names = table.names
        at = (
            f"it can be cut after {', '.join(names[:12])}{' …' if len(names) > 12 else ''}"
            if names
            else "it has no cut"
        )
        fewer = "2" if most == 2 else f"2 to {most}"
        what = f"expected {fewer}" if most > 1 else "expected another model"
        raise ConfigError(
            f"{stages} stages of a model that can be cut into {most} at most: {at}; {what}. Elsewhere more than one tensor "
            "crosses, such as a skip connection: put that and what it skips into a submodule"
        )


def _checked_speeds(speeds: Sequence[float] | None, stages: int) -> tuple[float, ...]:
    if speeds is None:
        return (1.0,) * stages
    found = tuple(speeds)
    if len(found) != stages:
        raise ConfigError(
            f"{len(found)} speeds for {stages} stages: expected one for each stage, from the bottom up, 1 for the machine "
            "of the table"
        )
    for speed in found:
        if isinstance(speed, bool) or not isinstance(speed, int | float) or not 0 < speed < math.inf:
            raise ConfigError(
                f"speed {brief(speed)}: expected a number over 0, 1 for the machine of the table"
            )
    return found


def _seconds(link_s: LinkTime, size: float) -> float:
    found = link_s(size)
    if isinstance(found, bool) or not isinstance(found, int | float) or not found >= 0:
        raise ConfigError(
            f"link_s({size:g}) returned {brief(found)}: expected the seconds that so many bytes take"
        )
    return float(found)

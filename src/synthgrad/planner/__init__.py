"""Would it pay? Simulated schedules, cuts and windows for a model and a link, before anything is rented."""

from .actions import Action, Compute, Job, Mark, Observe, Post, Send, Wait, WaitSent
from .candidates import find_candidates
from .costs import StageCost, total_cost
from .cuts import all_cuts, balanced_cuts, slowest_s
from .links import Link, Network, Wire, parse_link
from .menu import Row
from .profile import profile_model
from .proposal import Plan, plan
from .run import Run, Span, StageUse, Transfer
from .simulation import Machine, simulate
from .table import CostTable, ModuleCost
from .trace import steady_part, trace_events, write_trace

__all__ = [
    "Action",
    "Compute",
    "CostTable",
    "Job",
    "Link",
    "Machine",
    "Mark",
    "ModuleCost",
    "Network",
    "Observe",
    "Plan",
    "Post",
    "Row",
    "Run",
    "Send",
    "Span",
    "StageCost",
    "StageUse",
    "Transfer",
    "Wait",
    "WaitSent",
    "Wire",
    "all_cuts",
    "balanced_cuts",
    "find_candidates",
    "parse_link",
    "plan",
    "profile_model",
    "simulate",
    "slowest_s",
    "steady_part",
    "total_cost",
    "trace_events",
    "write_trace",
]

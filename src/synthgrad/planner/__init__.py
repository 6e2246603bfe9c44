"""Would it pay? Simulated schedules, cuts and windows for a model and a link, before anything is rented."""

from .actions import Action, Compute, Job, Mark, Observe, Post, Send, Wait, WaitSent
from .costs import StageCost, total_cost
from .links import Link, Network, Wire, parse_link
from .proposal import Plan, plan
from .run import Run, Span, StageUse, Transfer
from .simulate import Machine, simulate

__all__ = [
    "Action",
    "Compute",
    "Job",
    "Link",
    "Machine",
    "Mark",
    "Network",
    "Observe",
    "Plan",
    "Post",
    "Run",
    "Send",
    "Span",
    "StageCost",
    "StageUse",
    "Transfer",
    "Wait",
    "WaitSent",
    "Wire",
    "parse_link",
    "plan",
    "simulate",
    "total_cost",
]

"""The contract that every rule keeps, as a function: for rules of users' own, with or without pytest.

>>> import synthgrad as sg
>>> sg.testing.check_rule(sg.SyntheticGradient(context=10), clauses=["credit", "units"])  # nothing is said: it holds
"""

from .contract import CLAUSES, ContractError, check_rule
from .subject import Subject

__all__ = ["CLAUSES", "ContractError", "Subject", "check_rule"]

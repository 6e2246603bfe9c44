"""What is measured: one module for each experiment and benchmark, and the run loop with its records.

Add an experiment: a module with ``TIERS`` and a function that returns its complete `RunConfig`s, and an
entry in ``registry.py``. Add a method in ``methods.py``.
"""

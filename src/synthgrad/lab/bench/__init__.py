"""Benchmarks: what a step, a message, a byte or a failure costs, measured beside its peers."""

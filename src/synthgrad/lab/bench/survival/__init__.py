"""Benchmarks of failure: processes that are killed, neighbours that fall silent, inputs that are damaged."""

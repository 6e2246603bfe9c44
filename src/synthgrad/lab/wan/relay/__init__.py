"""The relay: a separate program that carries frames between the workers' devices and delays them.

It imports only the standard library and its own files, by relative names. So it starts in milliseconds and runs without
PyTorch: ``process.py`` starts it as the top-level package ``relay``.
"""

"""The delay line: a program of its own that carries frames between the workers' devices.

It imports the standard library only and its own files by relative names, so that it starts in milliseconds and runs
without PyTorch: ``process.py`` starts it as the top-level package ``relay``.
"""

"""``bench networks``: which networks each engine trains exactly as backpropagation does, and which it refuses.

``zoo.py`` has the networks, ``trainers.py`` trains them, ``exactness.py`` compares, ``crew.py`` are the processes.
"""

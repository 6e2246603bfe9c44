"""``bench memory``: bytes held for backward, and the peak of a process."""

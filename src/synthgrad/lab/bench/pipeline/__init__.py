"""``bench pipeline``: stages that wait for no gradient, beside pipelines that do, in one run.

Start with ``bench.py`` (what is measured) and ``timing.py`` (how). Nothing here is computed in the program that the user
starts: it starts ``worker.py`` once for each stage and tells all of them whose turn it is.

::

    bench.py ── settings ──► timing.py ── rounds ──► session.py ── restarts ──► ../workers.py
                                                                                    │ lines of JSON, over pipes
    cases.py   what a line measures                             worker.py  ◄────────┘  one process for each stage
    network.py the network and its parts                          │
                                                     peers.py, ours.py   what a process does in a step
                                                     learn.py            training to an accuracy
"""

"""``bench plan``: what the planner says, held against what was measured, here and by others.

::

    records of bench pipeline ──► lines.py ──► predict.py ──► bench.py ──► records: predicted_ms, measured_ms
                                     │             ▲
                                     └─ fit.py ────┘  overheads, from a named tenth of the lines
    figures that others published ──► public.py
    stages, round trips and rates ──► scale.py
    networks of five kinds        ──► cuts.py

Start with ``predict.py``: how a line of ``bench pipeline`` becomes costs, a network and a job.
"""

"""The schedule as data: which events an engine's timeline holds, in order, from graph, lags and waiting rules alone.

Three modules, ``a``, ``b`` and the last one, that end at the interfaces ``a`` and ``b``; the rules give credit at once.
F forward, C credit, B backward, M message for the interface below, O its rule observes, U update; the number is the
batch. Time goes down, and along a line.

::

    locked        a         b               output           in process    a            b                  output
                  F0 C0                                                    F0 C0 B0 U0
                            F0 C0                                                       F0 C0 B0 M0 O0 U0
                                            F0 B0 M0 O0                                                    F0 B0 M0 O0 U0
                            B0 M0 O0                                       F1 C1 B1 U1
                  B0 U0 (all)                                              …

    layer-parallel, and in process with forward lags of 1: what stands in a line has a common step

                  step 0    F0 C0 B0 U0
                  step 1    F1 C1 B1 U1     F0 C0 B0 M0 O0 U0
                  step 2    F2 C2 B2 U2     F1 C1 B1 M1 O1 U1     F0 B0 M0 O0 U0
                  step 3    F3 C3 B3 U3     F2 C2 B2 M2 O2 U2     F1 B1 M1 O1 U1

    a rule that waits (`TrueGradient`), in process: backpropagation, interface by interface

                            a               b                     output
                            F0 C0
                                            F0 C0
                                                                  F0 B0 M0 U0
                                            B0 M0 U0
                            B0 U0

No engine reads a timetable. It says what an engine does without its code, and the tests hold the timeline of every engine
to it, event by event.

>>> from synthgrad.core import timetable
>>> def said(events):
...     return " ".join(str(event) for event in events)
>>> events = list(timetable.in_process(timetable.chain("a", "b")))
>>> said(events[:4])
'0:forward(a)@0 0:credit(a)@0 0:backward(a)@0 0:update(a)@0'
>>> said(events[4:10])
'0:forward(b)@0 0:credit(b)@0 0:backward(b)@0 0:message(a)@0 0:observe(a)@0 0:update(b)@0'
>>> said(events[10:])
'0:forward(output)@0 0:backward(output)@0 0:message(b)@0 0:observe(b)@0 0:update(output)@0'

What the rule at ``a`` has heard of after four steps, if every message waits two steps:

>>> late = timetable.chain("a", "b", steps=4, terms=timetable.Terms(observe=2))
>>> said(e for e in timetable.in_process(late) if e.kind == "observe" and e.where == "a")
'2:observe(a)@0 3:observe(a)@1'
"""

from .clocked import ClockedEdge, ClockedNode, clocked
from .in_process import in_process
from .loops import layer_parallel, locked, recurrent, stage
from .schedule import ALWAYS, Schedule, Terms, chain

__all__ = [
    "ALWAYS",
    "ClockedNode",
    "Schedule",
    "Terms",
    "ClockedEdge",
    "chain",
    "clocked",
    "in_process",
    "layer_parallel",
    "locked",
    "recurrent",
    "stage",
]

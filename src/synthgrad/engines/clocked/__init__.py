"""Clocked networks: modules that tick at different rates and learn without waiting for each other.

Start with ``wiring.py`` (nodes, edges, clocks), then ``engine.py``. In this example the second of two
recurrent cells receives a message from the first in every other step:

>>> import torch, synthgrad as sg
>>> class Cell(torch.nn.Module):
...     def __init__(self, source):
...         super().__init__()
...         self.source, self.cell = source, torch.nn.GRUCell(4, 4)
...     def forward(self, inputs, state):
...         h = self.cell(inputs[self.source], state)
...         return h, h  # the message, and the state
>>> trainer = sg.engines.Clocked(
...     [sg.engines.Node("A", Cell("input")), sg.engines.Node("B", Cell("A"), period=2)],
...     [sg.engines.Edge("A", "B", sg.SyntheticGradient(receiver=True))],
...     {"A": torch.nn.functional.cross_entropy, "B": torch.nn.functional.cross_entropy},
...     lambda parameters: torch.optim.Adam(parameters, 1e-3),
...     example={"A": torch.zeros(8, 4)},
... )
>>> x, y = torch.randn(8, 4), torch.randint(0, 4, (8,))
>>> trainer.step({"A": x}, {"A": y}).updated
['A']
>>> trainer.step({"A": x}, {"A": y, "B": y}).updated
['A', 'B']
"""

from .engine import Clocked, ClockedRecord
from .network import ClockedNetwork
from .wiring import Edge, Node

__all__ = ["Clocked", "ClockedNetwork", "ClockedRecord", "Edge", "Node"]

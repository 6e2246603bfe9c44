"""Engines: where and in which order the modules of a decoupled network run.

``locked.py`` is the plain loop, ``in_process.py`` the unlocked one. ``boundary.py`` carries credit from one unroll
of a recurrent network to the one before, ``recurrent.py`` is the loop around it. These take a decoupled network, a
criterion and an optimizer factory, and offer ``step(x, y)``. ``clocked/`` trains several networks that tick at
different rates. ``layer_parallel/`` runs all layers of one as a batch,
``stages/`` parts of one in processes of their own.
"""

from .base import Criterion, StepRecord
from .boundary import Boundary
from .carry import Carry
from .clocked import Clocked, ClockedRecord, Edge, Node
from .in_process import InProcess
from .lags import Lag
from .layer_parallel import LayerParallel
from .locked import Locked
from .optimizers import OptimizerFactory, Parameters
from .penalty import Penalty
from .recurrent import Recurrent
from .stages import Stages

__all__ = [
    "Boundary",
    "Carry",
    "Clocked",
    "ClockedRecord",
    "Criterion",
    "Edge",
    "InProcess",
    "Lag",
    "LayerParallel",
    "Locked",
    "Node",
    "OptimizerFactory",
    "Parameters",
    "Penalty",
    "Recurrent",
    "Stages",
    "StepRecord",
]

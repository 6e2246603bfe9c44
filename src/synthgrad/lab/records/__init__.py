"""Result records, the only thing that experiments and reports share."""

from .lock import LOCK, locked
from .parts import Cell, Config, Env, Estimate, Graph, Metrics, OddPart, Part, Point, Time
from .record import SCHEMA, Record
from .store import FILE, append, finished, identity, open_folder, read
from .whole import WriteError, write_whole

__all__ = [
    "Cell",
    "Config",
    "Env",
    "Estimate",
    "FILE",
    "Graph",
    "LOCK",
    "Metrics",
    "OddPart",
    "Part",
    "Point",
    "SCHEMA",
    "Record",
    "Time",
    "WriteError",
    "append",
    "finished",
    "identity",
    "locked",
    "open_folder",
    "read",
    "write_whole",
]

"""Result records, the only thing that experiments and reports share."""

from .lock import LOCK, locked
from .store import FILE, SCHEMA, Record, append, finished, identity, open_folder, read
from .whole import WriteError, write_whole

__all__ = [
    "FILE",
    "LOCK",
    "SCHEMA",
    "Record",
    "WriteError",
    "append",
    "finished",
    "identity",
    "locked",
    "open_folder",
    "read",
    "write_whole",
]

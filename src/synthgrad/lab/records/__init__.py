"""Result records, the only thing that experiments and reports share."""

from .store import FILE, SCHEMA, Record, append, finished, identity, open_folder, read

__all__ = ["FILE", "SCHEMA", "Record", "append", "finished", "identity", "open_folder", "read"]

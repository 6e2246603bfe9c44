"""Loads matplotlib to draw into files, without a word where no folder of the user's can be written.

matplotlib then keeps its font list in a temporary folder, removes that at the end, warns about it on standard
error, and tells child processes of it by an environment variable. The first two are what is wanted here; the
warning would stand between the lines of a command, and no child process draws.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module

__all__: list[str] = []

_VARIABLE = "MPLCONFIGDIR"


def _load() -> None:
    logger, before = logging.getLogger("matplotlib"), os.environ.get(_VARIABLE)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import matplotlib

        matplotlib.get_configdir()  # both folders are settled here, once
        matplotlib.get_cachedir()
        matplotlib.use("Agg")
        import_module("matplotlib.font_manager")
    finally:
        logger.setLevel(level)
        os.environ.pop(_VARIABLE, None)
        if before is not None:
            os.environ[_VARIABLE] = before


_load()

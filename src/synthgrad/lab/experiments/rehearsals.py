"""What is tried before anything is written, whatever a run trains: can it begin, and what will a step cost?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from .config import RunConfig
from .loop import data_for
from .rehearsal import with_estimates
from .run_config import AnyRun
from .sequence_rehearsal import check_sequences

__all__ = ["rehearsed"]


def rehearsed(configs: Sequence[AnyRun]) -> list[AnyRun]:
    """Find what would fail in every run; return the runs, with the estimates that there are.

    What loading the data warns of is shown once.

    Raises:
        SynthgradError: if a run cannot begin.
    """
    feed_forward = [config for config in configs if isinstance(config, RunConfig)]
    others = [config for config in configs if not isinstance(config, RunConfig)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if feed_forward:
            first = feed_forward[0]
            data_for(first.cell.data, first.data_dir, first.hold_out, first.device)
        check_sequences(others)
    for text in dict.fromkeys(str(w.message) for w in caught):
        warnings.warn(text, stacklevel=2)
    return [*with_estimates(feed_forward), *others]

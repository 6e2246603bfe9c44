"""Can runs of recurrent networks begin? Every different one is prepared, without a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from .loops import loop_for
from .run_config import AnyRun

__all__ = ["check_sequences"]


def check_sequences(configs: Sequence[AnyRun]) -> None:
    """Prepare every run that differs from others in more than its seed.

    Raises:
        SynthgradError: if one cannot begin: a text that is missing or too short for its unrolls, an unknown
            kind of network.
    """
    for config in {repr(c): c for c in (replace(c, seed=0) for c in configs)}.values():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loop_for(config).prepare()

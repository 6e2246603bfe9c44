"""Settings that were predicted before they were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .lines import Line

__all__ = ["NEW"]


def _line(method: str, **settings: object) -> Line:
    usual = {"stages": 2, "layers": 9, "width": 512, "batch_size": 256}
    emulated = "rtt_ms" in settings
    return Line(method, **{**usual, "emulated": emulated, **settings})  # type: ignore[arg-type]


_LONG = {"rtt_ms": 120.0, "mbit_s": 1000.0}
_SLOW = {"rtt_ms": 30.0, "mbit_s": 300.0}
_FOUR = {"rtt_ms": 20.0, "mbit_s": 1000.0, "stages": 4}
_WIDE = {"width": 1024, "layers": 5, "batch_size": 512}

_FAR = {"rtt_ms": 80.0, "mbit_s": 200.0}
_NEAR = {"rtt_ms": 15.0, "mbit_s": 1000.0, "batch_size": 512}
_LARGE = {"width": 1024, "batch_size": 128, "stages": 4}
_FOUR_FAR = {"rtt_ms": 60.0, "mbit_s": 500.0, "stages": 4}

#: Two sets of ten settings whose link, number of processes, batch or network no earlier record has. Those of one link and
#: size are measured in one run, data parallel training first where it is among them.
NEW: Mapping[str, Sequence[Line]] = {
    "1": (
        _line("ddp", **_LONG),
        _line("1f1b", microbatches=8, **_LONG),
        _line("stages", share=1.0, **_LONG),
        _line("gpipe", microbatches=4, **_SLOW),
        _line("1f1b", microbatches=2, **_SLOW),
        _line("stages_sparse", share=0.25, **_SLOW),
        _line("1f1b", microbatches=4, **_FOUR),
        _line("stages_local", share=1.0, **_FOUR),
        _line("1f1b", microbatches=4, **_WIDE),
        _line("stages", share=1.0, **_WIDE),
    ),
    "2": (
        _line("ddp", **_FAR),
        _line("1f1b", microbatches=4, **_FAR),
        _line("stages_bfloat16", share=1.0, wire_dtype="bfloat16", **_FAR),
        _line("gpipe", microbatches=2, **_NEAR),
        _line("1f1b", microbatches=8, **_NEAR),
        _line("stages_sparse", share=0.25, **_NEAR),
        _line("1f1b", microbatches=4, **_LARGE),
        _line("stages", share=1.0, **_LARGE),
        _line("1f1b", microbatches=8, **_FOUR_FAR),
        _line("stages_local", share=1.0, **_FOUR_FAR),
    ),
}

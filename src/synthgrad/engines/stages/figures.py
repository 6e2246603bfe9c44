"""What a stage tells of itself: what it has sent, how long it has waited, and what it has done alone."""

from __future__ import annotations

from .connect import StageLinks
from .elastic import ElasticLinks
from .elastic_links import ElasticAbove
from .stage import Stage
from .tied_line import StageTies

__all__ = ["StageFigures"]


class StageFigures:
    """Figures of a stage so far, which read what its engine keeps."""

    _links: StageLinks | ElasticLinks
    _ties: StageTies | None
    _stage: Stage
    _busy_s: float
    _num_skipped: int

    @property
    def waited_s(self) -> float:
        """The time that this stage has spent waiting for others so far, in seconds."""
        return self._links.waited_s + (0.0 if self._ties is None else self._ties.line.waited_s)

    @property
    def busy_s(self) -> float:
        """The time that this stage has spent in steps without waiting so far, in seconds."""
        return self._busy_s

    @property
    def sent_bytes(self) -> int:
        """The number of bytes that this process has sent so far: to its neighbours, and gradients of tied parameters."""
        return self._links.sent_bytes + (0 if self._ties is None else self._ties.line.sent_bytes)

    @property
    def sent_up_bytes(self) -> int:
        """Of these, the number of bytes that were sent to the stage above: activations, and what goes along."""
        return self._links.sent_up_bytes

    @property
    def sent_down_bytes(self) -> int:
        """Of these, the number of bytes that were sent to the stage below: messages."""
        return self._links.sent_down_bytes

    @property
    def num_synthetic(self) -> int:
        """The number of batches so far that this stage has trained on synthetic inputs."""
        return 0 if self._stage.late is None else self._stage.late.num_synthetic

    @property
    def num_skipped(self) -> int:
        """The number of batches that this stage has not trained on, while there was no stage below."""
        return self._num_skipped

    @property
    def num_alone(self) -> int:
        """The number of batches that this stage has trained on without a stage above."""
        above = self._links.above
        return above.num_alone if isinstance(above, ElasticAbove) else 0

    @property
    def num_given_up(self) -> int:
        """The number of batches whose answers never came, because the stage above was gone."""
        above = self._links.above
        return above.num_given_up if isinstance(above, ElasticAbove) else 0

    @property
    def window(self) -> int:
        """The number of steps that an answer may be late now."""
        return self._links.window.size

    @property
    def round_trip_s(self) -> float:
        """The round trip to the stage above as measured at the start, in seconds; 0 for the last stage."""
        return self._links.round_trip_s

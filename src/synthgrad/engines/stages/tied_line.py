"""The line between the first stage and the last one, on which they send each other the gradients of tied parameters.

::

    first stage ── update 7: gradients of the embedding ──►  last stage
    first stage ◄── update 7: gradients of the scores ────   last stage

Both apply the same sum in the same update, so their copies of the parameters stay equal. Nothing is sent by a codec.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core import ConfigError, StageError
from ..ties import TiedParameters, Ties
from .coordinator import Coordinator
from .layout import RankLayout
from .transport import ALIGNED, Line

__all__ = ["StageTies", "TiedLine"]

#: Bytes, number of the update, which parameters there are gradients of, as bits, and a checksum of the optimizers' settings.
_LENGTH = 4
#: In place of the number of an update: nothing follows.
_END = -1
_POLL_S = 1 / 8
_NAME = "the line between the first stage and the last"


class TiedLine:
    """Sends what one end has learned, and receives what the other has.

    Args:
        line: between the two.
        of: the parameters, which the modules of both use, with their optimizers.
        layout: the place of this process, at one of the ends.
        coordinator: of all ranks.
        timeout_s: how long to wait for the other end, in seconds.
        lag: after how many updates gradients are needed.

    Attributes:
        sent_bytes: the bytes that were sent so far.
        waited_s: the seconds that were spent waiting so far.
    """

    def __init__(
        self,
        line: Line,
        of: TiedParameters,
        layout: RankLayout,
        coordinator: Coordinator,
        timeout_s: float,
        lag: int,
    ) -> None:
        last = layout.num_stages - 1
        self._parameters = [t.parameter for t in of.tied]
        self._optimizers = of.optimizers
        self._lag = lag
        self._settings: dict[int, int] = {}  # by update, until the other end's have come
        self._sizes = [p.numel() * p.element_size() for p in self._parameters]
        self._other = last if layout.is_first else 0
        self._peer = layout.rank(self._other)
        self._coordinator = coordinator
        self._timeout_s = timeout_s
        self._sender = line.sender()
        self._receiver = line.receiver(_LENGTH, self._check, _NAME)
        self._sender.make_room(lag + 2)
        self._receiver.make_room(lag + 2)
        self._receiver.start()
        self._kept: dict[int, tuple[dict[tuple[int, int], Tensor], int]] = {}
        self._next: int | None = None  # the update that comes next
        self.sent_bytes = 0
        self.waited_s = 0.0

    def send(self, update: int, grads: Mapping[tuple[int, int], Tensor]) -> None:
        """Send the gradients of an update."""
        if self._next is None:
            self._next = update
        self._settings[update] = settings = self._settings_now()
        present = sorted(grads)
        mask = sum(1 << n for n, _ in present)
        rows = [grads[key].detach().contiguous().reshape(-1).view(torch.uint8) for key in present]
        size = sum(map(len, rows))
        padding = -size % ALIGNED
        if rows and padding:
            rows.append(rows[0].new_zeros(padding))
        body = torch.cat(rows) if rows else None
        self._sender.send((size + padding, update, mask, settings), body, update)
        self.sent_bytes += 8 * _LENGTH + size + padding

    def receive(self, update: int) -> dict[tuple[int, int], Tensor]:
        """Return the gradients of an update from the other end. Blocks.

        Raises:
            StageError: if another process has stopped, or the line is broken.
            ConfigError: if the optimizers at the two ends have had other settings in that update.
        """
        while update not in self._kept:
            self._receive_next()
        grads, theirs = self._kept.pop(update)
        if theirs != self._settings.pop(update, theirs):
            raise ConfigError(
                f"update {update}: the optimizers of tied parameters have other settings (a learning rate, say) in the first "
                "stage than in the last, so that their copies would no longer be equal; give both the same, and step schedulers "
                "in all processes alike"
            )
        return grads

    def drain(self, num_updates: int) -> None:
        """Receive everything that the other end has sent, so that a state can be saved. Blocks.

        Args:
            num_updates: the number of updates that both have come to.
        """
        while self._next is not None and self._next < num_updates:
            self._receive_next()

    def close(self) -> None:
        """Part from the other end. Blocks."""
        self._sender.send((0, _END, 0, 0), None, 0)
        self._sender.flush()
        while self._get() is not None:
            pass  # what nobody needs any more
        self._receiver.join(self._timeout_s)
        # A connection must not be closed before the other has read what was sent last.
        self._coordinator.publish(f"tied/{self._coordinator.transport.rank}", True)
        self._coordinator.wait_for(f"tied/{self._peer}", self._peer, self._timeout_s)

    def state_dict(self) -> dict[str, Any]:
        """Return what was received and not used, after `drain`."""
        return {
            "kept": {update: (dict(grads), settings) for update, (grads, settings) in self._kept.items()},
            "next": self._next,
            "settings": dict(self._settings),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self._kept = {
            update: (
                {(n, k): g.to(self._parameters[n].device, copy=True) for (n, k), g in grads.items()},
                settings,
            )
            for update, (grads, settings) in state["kept"].items()
        }
        self._next = state["next"]
        self._settings = dict(state["settings"])

    def _receive_next(self) -> None:
        found = self._get()
        if found is None:
            raise StageError(
                f"{_NAME}: the other end has closed its engine; give all ranks the same number of batches"
            )
        update, grads, settings = found
        if update != self._next:
            raise StageError(f"{_NAME}: update {update} has come, expected update {self._next}")
        self._kept[update] = grads, settings
        self._next = update + 1
        # Before it sent this one, the other end had applied what both sent so many updates before.
        self._sender.arrived(update - self._lag - 1)

    def _settings_now(self) -> int:
        """Return a checksum of the settings of the optimizers, such as learning rates, which must be those of the other end."""
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        settings = [
            {
                name: float(v) if isinstance(v, Tensor) else v
                for name, v in sorted(group.items())
                if name != "params"
            }
            for group in groups
        ]
        return zlib.crc32(repr(settings).encode())

    def _get(self) -> tuple[int, dict[tuple[int, int], Tensor], int] | None:
        """Return the next update, its gradients and the checksum; None at the end of the line. Blocks."""
        coordinator = self._coordinator
        start = coordinator.transport.clock.now()
        limit = coordinator.wait_limit(self._timeout_s, self._peer)
        limit.announce_wait(self._peer)
        try:
            while (parcel := self._receiver.get(_POLL_S)) is None:
                limit.check()
        except StageError:
            raise
        except Exception as error:
            raise coordinator.alarm.broken_error(_NAME, error, self._timeout_s) from None
        finally:
            limit.announce_wait(None)
            self.waited_s += coordinator.transport.clock.now() - start
        _, update, mask, settings = parcel.header
        if update == _END:
            return None
        grads: dict[tuple[int, int], Tensor] = {}
        at = 0
        for n, p in enumerate(self._parameters):
            if mask >> n & 1:
                assert parcel.body is not None
                values = parcel.body[at : at + self._sizes[n]].clone().view(p.dtype).view(p.shape)
                grads[n, self._other] = values.to(p.device)
                at += self._sizes[n]
        return update, grads, settings

    def _check(self, header: Sequence[int]) -> bool:
        """Refuse a header that was not agreed upon; return whether another follows."""
        size, update, mask, _ = header
        expected = sum(s for n, s in enumerate(self._sizes) if mask >> n & 1)
        if not 0 <= mask < 1 << len(self._sizes) or size != ALIGNED * math.ceil(expected / ALIGNED):
            raise StageError(f"{_NAME}: {size} bytes for the tied parameters {mask:b}, expected {expected}")
        return update != _END


class StageTies(Ties):
    """Tied parameters in the first or the last stage, with the line to the other.

    Args:
        of: the parameters and their optimizers.
        size: number of steps of an update.
        lag: after how many updates gradients are applied.
        line: to the other stage.
        layout: the place of this process.
        coordinator: of all ranks.
        timeout_s: how long to wait for the other, in seconds.
    """

    def __init__(
        self,
        of: TiedParameters,
        size: int,
        lag: int,
        line: Line,
        layout: RankLayout,
        coordinator: Coordinator,
        timeout_s: float,
    ) -> None:
        self.line = TiedLine(line, of, layout, coordinator, timeout_s, lag)
        super().__init__(of, size, lag, self.line, layout.stage)

    def drain(self, step: int) -> None:
        """Receive all that belongs to the steps so far, before `state_dict`. Blocks; both stages must call it."""
        self.line.drain(step // self._size)

    def state_dict(self) -> dict[str, Any]:
        """See `Ties.state_dict`; with what the other stage has sent."""
        return {**super().state_dict(), "line": self.line.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned."""
        super().load_state_dict(state)
        self.line.load_state_dict(state["line"])

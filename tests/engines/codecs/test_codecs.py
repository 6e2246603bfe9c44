"""What tensors are on the wire: by `cast`, and by a codec of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from synthgrad.core import ConfigError
from synthgrad.engines import Stages
from synthgrad.engines.codecs import Codec, cast
from tests.engines.stages import programs
from tests.engines.stages.places import InMemory, Place

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (1, 0)])
def test_a_cast_rounds_to_its_dtype(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    codec, t = cast(dtype), torch.randn(shape, dtype=torch.float64)
    data = codec.encode(t)
    assert data.dtype == torch.uint8
    assert data.shape == (codec.num_bytes(shape),) == (t.numel() * dtype.itemsize,)
    if t.numel():
        found = codec.decode(data, shape, CPU, torch.float64)
        torch.testing.assert_close(found, t.to(dtype).double(), rtol=0, atol=0)


def test_a_cast_takes_what_is_not_contiguous() -> None:
    t = torch.randn(4, 6).t()
    found = cast(torch.float32).decode(cast(torch.float32).encode(t), (6, 4), CPU, torch.float32)
    assert torch.equal(found, t)


def test_a_cast_to_whole_numbers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cast\(torch.int8\): expected a floating dtype"):
        cast(torch.int8)


@dataclass(frozen=True)
class Eighths:
    """Sends numbers as whole eighths, one byte each.

    Attributes:
        lies: says a byte less than it makes.
        name: of the codec.
    """

    lies: int = 0
    name: str = "eighths"

    def num_bytes(self, shape: Sequence[int]) -> int:
        return torch.Size(shape).numel() - self.lies

    def encode(self, tensor: Tensor) -> Tensor:
        return (tensor * 8).round().clamp(-128, 127).to(torch.int8).contiguous().view(-1).view(torch.uint8)

    def decode(self, data: Tensor, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        return data.view(torch.int8).view(tuple(shape)).to(device, dtype) / 8


def _trained(place: Place, options: dict[str, Any], seen: list[Tensor] | None = None) -> dict[str, Any]:
    net, data = programs.network(2, "cdni"), programs.batches(6)
    options = {"window": 1, "deterministic": True, **options}
    with Stages(net, programs.per_example, programs.adam, transport=place.transport, **options) as stages:
        if place.rank == 1:
            stages.module.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))  # type: ignore[union-attr]  # pyright: ignore
        for x, y in data:
            stages.step(*((x, y) if place.rank == 0 or "target" not in options else ()))
        sent_bytes = stages.sent_bytes
        stages.gather()
    return {"weights": programs.weights(net), "sent_bytes": sent_bytes}


HEADER = 8 * (8 + 2 + 1)


def test_wire_dtype_is_short_for_a_cast(two: InMemory) -> None:
    one = two.run(_trained, {"wire_dtype": torch.bfloat16}, [])
    other = two.run(_trained, {"codec": cast(torch.bfloat16)}, [])
    for a, b in zip(one, other, strict=True):
        assert a["sent_bytes"] == b["sent_bytes"]
        assert all(torch.equal(a["weights"][n], t) for n, t in b["weights"].items())
    # 10 × 8 numbers of two bytes both ways; the losses of examples as they are.
    assert one[0]["sent_bytes"] == 6 * (HEADER + 160)
    assert one[1]["sent_bytes"] == 6 * (HEADER + 160 + 80)


def test_a_codec_of_ones_own_serves_activations_and_messages_only(two: InMemory) -> None:
    seen: list[Tensor] = []
    first, last = two.run(_trained, {"codec": Eighths(), "target": programs.batches(1)[0][1]}, seen)
    assert len(seen) == 6
    assert all(torch.equal(h, (h * 8).round() / 8) for h in seen)
    assert any(h.abs().max() > 0 for h in seen)
    # 80 bytes both ways; labels of 8 bytes go up, losses of 8 bytes come down.
    assert first["sent_bytes"] == 6 * (HEADER + 80 + 80)
    assert last["sent_bytes"] == 6 * (HEADER + 80 + 80)


def test_the_handshake_compares_codecs(two: InMemory) -> None:
    for outcome in two.outcomes(_differ, (Eighths(), Eighths(name="other"))):
        assert "ConfigError: rank 0 and rank 1 differ in codec: eighths against other" in (
            outcome.error or ""
        )


def _differ(place: Place, codecs: tuple[Codec, ...]) -> None:
    options = {"codec": codecs[place.rank], "timeout_s": 5, "transport": place.transport}
    Stages(programs.network(2, "cdni"), programs.per_example, programs.adam, **options).close()


def test_a_codec_that_makes_other_bytes_than_it_says_is_named(two: InMemory) -> None:
    first, _ = two.outcomes(_trained, {"codec": replace(Eighths(), lies=1), "timeout_s": 5}, [])
    assert "codec 'eighths' made a torch.uint8 of shape (80,)" in (first.error or "")
    assert "expected 79 bytes" in (first.error or "")


def test_a_codec_and_a_wire_dtype_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="is the short form of a codec"):
        Stages(
            programs.network(2, "cdni"),
            programs.per_example,
            programs.adam,
            wire_dtype=torch.bfloat16,
            codec=cast(torch.bfloat16),
        )

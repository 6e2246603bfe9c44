"""The largest values of messages, and what was left out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from synthgrad.core import ConfigError
from synthgrad.engines import Stages
from synthgrad.engines.codecs import Codec, KeepingCodec, blocks, cast, top_k
from tests.engines.stages import programs
from tests.engines.stages.places import InMemory, Place

CPU = torch.device("cpu")


def again(codec: Codec, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    data = codec.encode(t)
    assert data.dtype == torch.uint8
    assert data.shape == (codec.num_bytes(t.shape),)
    return codec.decode(data, t.shape, CPU, dtype)


@pytest.mark.parametrize("shape", [(4, 256), (3, 1000), (2, 5, 7), (9,), (1, 0)])
def test_the_largest_of_every_block_arrive_and_all_others_are_zero(shape: tuple[int, ...]) -> None:
    t = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    found = again(top_k(0.25, feedback=False), t)
    for given, made in zip(t.flatten().split(1024), found.flatten().split(1024), strict=True):
        if given.numel():
            kept = max(1, round(0.25 * min(t.numel(), 1024)))
            arrived = made[made != 0]
            assert torch.equal(arrived, given[made != 0])
            largest = given.abs().topk(min(kept, len(given))).values
            assert torch.equal(arrived.abs().sort(descending=True).values, largest)


def test_bytes() -> None:
    assert top_k(1 / 16).num_bytes((2048, 128)) == 2048 * 128 // 16 * 4
    assert top_k(1e-9).num_bytes((2, 1024)) == 2 * 4  # one of each block
    assert top_k(0.5).num_bytes((0, 7)) == 0


def test_with_feedback_nothing_is_lost_in_the_sum() -> None:
    drawn = torch.Generator().manual_seed(0)
    codec, without = top_k(0.125), top_k(0.125, feedback=False)
    total, sent, sent_without = (torch.zeros(8, 64) for _ in range(3))
    for _ in range(50):
        t = torch.randn(8, 64, generator=drawn) + 0.3
        total += t
        sent += again(codec, t)
        sent_without += again(without, t)
    left = codec.state_dict()["left"]  # type: ignore[attr-defined]
    torch.testing.assert_close(sent + left, total, rtol=1e-4, atol=1e-3)
    assert (sent - total).norm() < 0.5 * (sent_without - total).norm()


def test_of_another_shape_nothing_is_added_and_what_is_not_finite_is_told_once() -> None:
    codec = top_k(0.25)
    again(codec, torch.full((2, 8), 3.0))
    assert again(codec, torch.eye(4)).sum() == 4.0
    bad = torch.ones(2, 8)
    bad[0, 0] = math.nan
    assert not again(codec, bad).isfinite().all()
    assert again(codec, torch.ones(2, 8)).isfinite().all()


def test_each_direction_keeps_its_own() -> None:
    codec = top_k(0.25)
    assert isinstance(codec, KeepingCodec)
    one, other = codec.for_direction(), codec.for_direction()
    again(one, torch.ones(2, 8))
    assert torch.equal(again(other, torch.eye(4)), torch.eye(4))
    assert not isinstance(blocks(8), KeepingCodec)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: top_k(0), r"top_k\(0\): expected a share above 0 up to 1"),
        (lambda: top_k(1.5), r"top_k\(1.5\)"),
        (lambda: top_k(True), r"top_k\(True\)"),
        (lambda: top_k(math.nan), r"top_k\(nan\)"),
        (lambda: top_k(0.5, feedback=1), "feedback=1: expected True or False"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_told(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


# On a link


def _trained(place: Place, options: dict[str, Any]) -> dict[str, Any]:
    return programs.trained(place, 2, "cdni", 12, window=1, deterministic=True, **options)


def test_messages_have_a_codec_of_their_own(two: InMemory) -> None:
    def bytes_of(options: dict[str, Any]) -> list[int]:
        return [found["sent_bytes"] for found in two.run(_trained, options)]

    plain, both = bytes_of({}), bytes_of({"codec": blocks(8)})
    messages, apart = (
        bytes_of({"message_codec": top_k(0.1)}),
        bytes_of({"codec": blocks(8), "message_codec": top_k(0.1)}),
    )
    assert plain[0] == messages[0] > both[0] == apart[0]
    assert plain[1] > both[1] > messages[1] == apart[1]


def test_all_values_in_bfloat16_are_what_the_wire_dtype_sends(two: InMemory) -> None:
    found = two.run(_trained, {"message_codec": top_k(1.0, feedback=False)})[0]["weights"]
    expected = two.run(_trained, {"message_codec": cast(torch.bfloat16)})[0]["weights"]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("what", ["codec", "message_codec"])
def test_what_is_no_codec_is_refused(two: InMemory, what: str) -> None:
    for outcome in two.outcomes(_refused, what):
        assert f"ConfigError: {what}=8: expected a codec, such as codecs.blocks(8)" in (outcome.error or "")


def _refused(place: Place, what: str) -> None:
    options: dict[str, Any] = {what: 8}
    Stages(
        programs.network(2, "cdni"),
        programs.per_example,
        programs.adam,
        transport=place.transport,
        **options,
    )


def _with_nan(place: Place, what: str) -> None:
    """Have a number in the activation or in the message of the third batch that is not finite."""
    net, data = programs.network(2, "cdni"), programs.batches(6)
    how: dict[str, Any] = {
        "window": 1,
        "deterministic": True,
        "codec": blocks(8),
        "message_codec": top_k(0.5),
    }
    with Stages(net, programs.per_example, programs.adam, transport=place.transport, **how) as stages:
        for n, (x, y) in enumerate(data):
            if n == 2 and what == "activation":
                x[0, 0] = math.nan
            if n == 2 and what == "message" and place.rank == 1:
                stages.module.register_full_backward_hook(lambda m, sent, came: (sent[0] * math.nan,))
            stages.step(x if place.rank == 0 else None, y)


@pytest.mark.parametrize("what", ["activation", "message"])
def test_a_block_that_is_not_finite_is_named_with_interface_and_step(two: InMemory, what: str) -> None:
    first, last = two.outcomes(_with_nan, what)
    step = 2 if what == "activation" else 3  # it comes a step later
    assert f"the {what} at interface '0' was not finite at step {step}" in (first.error or "")
    assert "not finite" in (last.error or "")

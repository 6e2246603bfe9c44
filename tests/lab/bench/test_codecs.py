"""``bench codecs``: bytes by arithmetic, errors of known size, and what fails."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from synthgrad.core import ConfigError
from synthgrad.lab.bench import codecs as bench
from synthgrad.lab.bench.codecs import CodecsBench, CodecSize, codec_named
from synthgrad.lab.bench.pipeline.declared import CODEC_NAMES, CODECS
from tests.lab.cli.helpers import call, records_in

SMOKE: Any = CODECS.tiers["smoke"]


def test_the_command_measures_every_codec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("bench", "codecs", "--tier", "smoke", "--quiet", "--out", tmp_path) == 0
    assert "worth it" in " ".join(capsys.readouterr().out.split())
    found = {r["method"]: r for r in records_in(tmp_path)}
    assert tuple(found) == CODEC_NAMES
    metrics = {name: r["metrics"] for name, r in found.items()}
    assert {name: m["sent_bytes_per_token"] for name, m in metrics.items()} == {
        "float32": 256,
        "bfloat16": 128,
        "8_bits": 66,
        "4_bits": 34,
        "subspace_32": 128,
        "subspace_32_8_bits": 33,
        "largest_1_16": 16,
        "largest_1_64": 4,
    }
    assert metrics["float32"]["relative_error"] == 0
    assert metrics["float32"]["worth_below_mbit_s"] is None
    assert 1e-3 < metrics["bfloat16"]["relative_error"] < 4e-3  # at most 2^-8, a third of that on average
    assert metrics["subspace_32"]["relative_error"] == pytest.approx(
        0.5**0.5, abs=0.05
    )  # half of 64 directions
    assert metrics["8_bits"]["relative_error"] < metrics["4_bits"]["relative_error"] < 0.2
    for m in metrics.values():
        assert m["encode_us_per_kilobyte"] == pytest.approx(m["encode_ms_median"] * 1e3 / (256 * 32 / 1000))
    saved, m = 8 * 32 * (256 - 66), metrics["8_bits"]
    both_s = (m["encode_ms_median"] + m["decode_ms_median"]) * 1e-3
    assert m["worth_below_mbit_s"] == pytest.approx(saved / both_s / 1e6)
    # Of a half's sixteen bits, eight say which order of magnitude: about two and a half bits of news.
    assert 0.7 < metrics["bfloat16"]["deflated_bytes_per_token"] / 128 < 0.9
    assert 0.9 < metrics["8_bits"]["deflated_bytes_per_token"] / 66 < 1.05
    saved, m = 8 * 32 * (128 - metrics["bfloat16"]["deflated_bytes_per_token"]), metrics["bfloat16"]
    both_s = (m["deflate_ms_median"] + m["inflate_ms_median"]) * 1e-3
    assert m["deflating_worth_below_mbit_s"] == pytest.approx(saved / both_s / 1e6)


def test_who_inflates_has_what_was_deflated() -> None:
    data = codec_named("bfloat16").encode(torch.randn(64, 64)).view(torch.uint8).numpy().tobytes()
    assert zlib.decompress(bench._deflated(data), -15) == data


def test_a_codec_that_fails_costs_its_line_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def named(name: str) -> Any:
        made = codec_named(name)
        if name == "4_bits":
            monkeypatch.setattr(type(made), "decode", _fails)
        return made

    monkeypatch.setattr(bench, "codec_named", named)
    scope = replace(SMOKE, methods=("bfloat16", "4_bits", "float32"))
    found = list(CodecsBench().measure(scope, CodecSize(seed=0, width=64, tokens=4), scope.methods))
    assert [f.error for f in found] == [None, "RuntimeError: no bits", None]


def _fails(*args: object) -> torch.Tensor:
    raise RuntimeError("no bits")


def test_what_is_no_codec_is_refused() -> None:
    with pytest.raises(ConfigError, match="'zip' is unknown to bench codecs; accepted: float32, bfloat16"):
        CodecsBench().settings(replace(SMOKE, methods=("zip",)))

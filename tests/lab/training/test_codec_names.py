"""Codecs by name, and where the laboratory takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synthgrad.core import ConfigError
from synthgrad.lab.training.codec_names import EXAMPLES, codec_from
from tests.lab.cli.helpers import call, records_in


def test_every_example_is_a_codec() -> None:
    names = [None if codec is None else codec.name for codec in map(codec_from, EXAMPLES)]
    assert names == [
        None,
        "cast to torch.bfloat16",
        "8 bits in blocks of 64",
        "4 bits in blocks of 64",
        "subspace of 32 features, seed 0, cast to torch.float32",
        "subspace of 32 features, seed 0, 8 bits in blocks of 64",
        "largest 6.25 % with error feedback",
    ]


@pytest.mark.parametrize(
    "name", ["zip", "", "8bits:2", "subspace", "subspace:x", "subspace:4:zip", "largest:much"]
)
def test_an_unknown_one_is_told(name: str) -> None:
    with pytest.raises(ConfigError, match="expected one of float32, bfloat16, 8bits"):
        codec_from(name)


@pytest.mark.parametrize(("name", "said"), [("subspace:0", "rank=0"), ("largest:2", r"top_k\(2.0\)")])
def test_a_number_out_of_range_is_told(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        codec_from(name)


SHORT = [
    "compare",
    "--arch",
    "gpt",
    "--data",
    "shakespeare-50k",
    "--steps",
    "6",
    "--width",
    "16",
    "--context",
    "16",
]
SHORT += ["--layers", "2", "--batch-size", "4", "--threads", "1", "--quiet"]


def test_codecs_change_methods_with_a_rule_and_no_others(tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []
    for number, more in enumerate(([], ["--codec", "4bits"], ["--message-codec", "largest:0.1"])):
        asked = ["--methods", "backprop,local_loss,cdni", *more, "--out", str(tmp_path / str(number))]
        assert call(*SHORT, *asked) == 0
        found.append({r["method"]: r["weights_sha256"] for r in records_in(tmp_path / str(number))})
    plain, coded, messages = found
    assert plain["backprop"] == coded["backprop"] == messages["backprop"]
    assert plain["local_loss"] != coded["local_loss"]
    assert plain["local_loss"] == messages["local_loss"]  # no message reaches it
    assert len({plain["cdni"], coded["cdni"], messages["cdni"]}) == 3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--codec", "zip"], "codec 'zip': expected one of"),
        (["--codec", "subspace:17"], "was given messages of 16 features"),
        (
            ["--codec", "8bits", "--engine", "plain"],
            "codec '8bits' with the plain engine: only in-process and stages",
        ),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_trained(
    more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*SHORT, "--methods", "local_loss", *more, "--out", str(tmp_path)) == 2
    assert said in capsys.readouterr().err

"""Hygiene for every test: one thread, a fixed seed, nothing left behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pooch
import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stop at a slow test that does not say why it must be slow."""
    silent = [i.nodeid for i in items for m in i.iter_markers("slow") if not m.kwargs.get("reason")]
    if silent:
        raise pytest.UsageError(f"marked slow without a reason: {', '.join(silent)}; write slow(reason=…)")


@pytest.fixture(autouse=True)
def _clean(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread, an environment variable or a global setting of torch behind."""
    torch.manual_seed(0)
    threads = set(threading.enumerate())
    environment = dict(os.environ)
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    yield
    assert torch.get_default_dtype() == dtype
    assert torch.is_grad_enabled() == grad
    if "compiles" not in request.keywords:  # the compiler keeps its pool of threads
        assert {t for t in threading.enumerate() if t.is_alive() and not t.daemon} <= threads
    changed = {k for k in environment.keys() | os.environ.keys() if environment.get(k) != os.environ.get(k)}
    # What PyTorch and Accelerate set for themselves is theirs.
    theirs = ("TORCH", "KMP", "ACCELERATE", "PYTEST")
    assert not {k for k in changed if not any(word in k for word in theirs)}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data but what a test makes: no network, an empty cache, no directory from the environment."""

    def refuse(*args: Any, **kwargs: Any) -> str:
        raise OSError("no network in tests")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.delenv("SYNTHGRAD_DATA", raising=False)

"""Fixtures that many tests share; the example network itself is in network.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.network import (
    TIES,
    Bench,
    example_adapter,
    example_tensors,
    write,
    write_adapter,
)


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is most of what a small test does, and no test could see a difference.

    That outputs are flushed before they are published is tested by failing flushes.
    """
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An empty folder to operate in."""
    return Bench(tmp_path)


@pytest.fixture
def example(tmp_path: Path) -> Bench:
    """The example network, the model `other` of the same names and shapes, and an adapter."""
    made = Bench(tmp_path)
    made.given(example_tensors(), TIES)
    made.models["other"] = str(write(tmp_path / "other.safetensors", example_tensors(1), TIES))
    write_adapter(tmp_path / "adapter", example_adapter())
    return made

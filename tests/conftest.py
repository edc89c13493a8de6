"""Fixtures that many tests share; the example network itself is in network.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from surgeon.numeric import blas
from tests.network import Bench, example_bench

# Machines are busy: how long an example takes says nothing of it.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# The runs beside this one have the other cores; threads that wait for each other take the most.
torch.set_num_threads(1)
if found := blas.threads():
    found.set(1)


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
def example(tmp_path: Path, request: pytest.FixtureRequest) -> Bench:
    """The example network, an adapter, models of the same names and shapes, and statistics."""
    op = getattr(request.node, "callspec", None) and request.node.callspec.params.get("op")
    return example_bench(tmp_path, getattr(op, "name", ""))

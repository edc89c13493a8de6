"""Fixtures that many tests share; the example network itself is in network.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.network import TIES, Bench, example_tensors, write


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An empty folder to operate in."""
    return Bench(tmp_path)


@pytest.fixture
def example(tmp_path: Path) -> Bench:
    """The example network, and the model `other` with the same names and shapes."""
    made = Bench(tmp_path)
    made.given(example_tensors(), TIES)
    made.models["other"] = str(write(tmp_path / "other.safetensors", example_tensors(1), TIES))
    return made

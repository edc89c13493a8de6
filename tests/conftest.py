"""Fixtures that many tests share; the example network itself is in network.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.network import (
    TIES,
    Bench,
    example_adapter,
    example_codes,
    example_grams,
    example_importances,
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


# Ops that need another input than the example network.
EXAMPLE_INPUTS = {"dequantize": example_codes, "lora_combine": dict}


@pytest.fixture
def example(tmp_path: Path, request: pytest.FixtureRequest) -> Bench:
    """The example network, an adapter, models of the same names and shapes, and statistics."""
    made = Bench(tmp_path)
    op = getattr(request.node, "callspec", None) and request.node.callspec.params.get("op")
    special = EXAMPLE_INPUTS.get(getattr(op, "name", ""), dict)
    made.given({**example_tensors(), **special()}, TIES)
    models = {
        "other": example_tensors(1),
        "third": example_tensors(2),
        "fisher": example_importances(3),
        "other_fisher": example_importances(4),
        "gram": example_grams(5),
        "other_gram": example_grams(6),
    }
    for name, tensors in models.items():
        made.models[name] = str(write(tmp_path / f"{name}.safetensors", tensors, TIES))
    write_adapter(tmp_path / "adapter", example_adapter())
    if getattr(op, "name", "") == "lora_combine":
        factors = {n: t for n, t in example_adapter().items() if "lora" in n}
        write_adapter(tmp_path / "second", factors, r=2, lora_alpha=3)
        made.input = write_adapter(tmp_path / "first", factors) / "adapter_model.safetensors"
    return made

"""Rows of numbered layers, for names of any depth."""

from __future__ import annotations

from surgeon.base.folding import folded
from surgeon.base.units import spoken_size


def test_layers_in_layers_fold() -> None:
    rows = [(f"m.{layer}.e.{expert}.w", "F32") for layer in range(3) for expert in range(2)]
    assert folded([*rows, ("m.head", "F32")]) == [("m.{0-2}.e.{0-1}.w", "F32"), ("m.head", "F32")]


def test_names_of_thousands_of_parts_take_no_longer() -> None:
    rows = [(f"{'0.' * depth}w", "F32") for depth in range(1, 2000)]
    assert len(folded(rows)) == len(rows)


def test_a_size_that_no_disk_has_is_told() -> None:
    assert spoken_size(10**500).endswith(" TB")

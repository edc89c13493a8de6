"""Inner products of operands: the operands themselves stay as they are."""

from __future__ import annotations

import torch

from tests.network import Bench, assert_identical


def test_what_is_held_whole_can_be_a_model_of_a_relative_merge(bench: Bench) -> None:
    """A decomposition is kept, read-only, while its tensor is written."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 6, 5, dtype=torch.float64, generator=generator)
    tsv = {"op": "tsv", "models": ["b", "c"]}
    stock = {"op": "model_stock", "models": ["m", "c"]}
    bench.given({"w": a}, b={"w": b}, c={"w": c})
    between = bench.operate(tsv).tensors
    at_once = bench.operate({**tsv, "into": "m"}, stock).tensors
    assert_identical(at_once, bench.given({"w": a}, m=between).operate(stock).tensors)

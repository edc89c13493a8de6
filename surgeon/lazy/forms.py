"""Compiled forms that several kernels have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.lazy.blockwise import StoredBlocks
from surgeon.numeric import compiled
from surgeon.numeric.dtypes import Array


@dataclass(frozen=True)
class Linear:
    """Σ factor · operand, one after the other, then times `multiply`, divided by `divide`.

    Computed in float64; in float32 with `in_float32`, where no operand is float64. With `copies`
    NaNs keep what they say; with `keep_zeros` a zero that is the first operand's keeps its sign.
    """

    factors: Sequence[float]
    multiply: float = 1.0
    divide: float = 1.0
    in_float32: bool = False
    copies: bool = False
    keep_zeros: bool = False

    def __call__(self, blocks: StoredBlocks, statistics: Any, dtype: str, out: Array) -> bool:
        # Of sums with more digits than the result's, float32 may end halfway between two results.
        alike = len(blocks) == 1 or all(block.dtype == dtype for block in blocks)
        in_float32 = self.in_float32 and alike and all(block.dtype != "F64" for block in blocks)
        return compiled.linear(
            blocks, self.factors, dtype, out, multiply=self.multiply, divide=self.divide,
            in_float32=in_float32, one_nan=not self.copies, keep_zeros=self.keep_zeros,
        )  # fmt: skip

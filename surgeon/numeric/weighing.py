"""The compiled loops of variances and of sums that are weighed element by element; see mixes.c."""

from __future__ import annotations

from collections.abc import Sequence

from surgeon.base.deferred import np
from surgeon.numeric.compiled import Array, Block, _address, _loops, _operands


def variance(blocks: Sequence[Block]) -> Array:
    """Return the variance of what the others add to the first block, times their number."""
    out = np.empty(len(blocks[0].elements))
    _loops().variance(len(out), _operands(blocks), len(blocks), _address(out))
    return out

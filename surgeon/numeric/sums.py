"""Sums in one order on every machine: so many at once side by side, then halves by halves.

The order is that of kernels.c. NumPy's own sums, and those of BLAS, depend on the processor.
"""

from __future__ import annotations

import numpy as np

from surgeon.numeric.compiled import LANES
from surgeon.numeric.dtypes import Array


def sums(values: Array) -> Array:
    """Return the sums of float64 along the last dimension."""
    length = values.shape[-1]
    # Lanes that nothing is added to are left out, which changes no sum.
    lanes = min(LANES, 1 << max(0, length - 1).bit_length())
    whole = length // lanes * lanes
    rows = values[..., :whole].reshape(*values.shape[:-1], -1, lanes)
    found: Array = np.add.reduce(rows, axis=-2, initial=0.0)
    found[..., : length - whole] += values[..., whole:]
    while lanes > 1:
        lanes //= 2
        found = found[..., :lanes] + found[..., lanes:]
    return found[..., 0]


def sum_of(values: Array) -> float:
    """Return the sum of all of a block's float64."""
    return float(sums(values.reshape(-1)))

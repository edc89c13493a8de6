"""How values are spread, counted in one pass with a fixed number of bins.

A bin is a sign, a power of two, and one of its four quarters: the upper bits of a float32. So bins
of all tensors are the same, and counts of parts add up to those of the whole.
"""

from __future__ import annotations

import numpy as np

from surgeon.numeric.dtypes import Array

# Of a sign: 256 exponents, and four quarters of each.
BINS = 1024
_SHIFT = 21
_FINITE = 255 * 4


def counted(values: Array) -> Array:
    """Return how many of some float32 values are in each bin: of positive ones, then of negative.

    Zeros and what is below float32's normal numbers are in the first four bins of each sign, what
    is not finite in the last four.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32) >> np.uint32(_SHIFT)
    counts: Array = np.bincount(bits.ravel(), minlength=2 * BINS).astype(np.int64)
    return counts.reshape(2, BINS)


def edges(first: int, last: int) -> Array:
    """Return the lower edges of bins, and the upper one of the last: magnitudes, in float64."""
    places = np.arange(first, last + 1)
    found: Array = np.ldexp(1 + (places % 4) / 4, places // 4 - 127)
    return found


def occupied(counts: Array) -> tuple[int, int]:
    """Return the range of bins, either sign's, in which finite values other than zero are."""
    (there,) = np.nonzero(counts[:, 4:_FINITE].any(axis=0))
    return (int(there[0]) + 4, int(there[-1]) + 5) if there.size else (4, 4)


def nonfinite(counts: Array) -> int:
    return int(counts[:, _FINITE:].sum())


def zeros(counts: Array) -> int:
    return int(counts[:, :4].sum())


def quantile(counts: Array, share: float) -> float:
    """Return the magnitude below which a share of the finite values is, to a quarter of an octave.

    Zero where so many are zero; the lower edge of a bin otherwise.
    """
    both = counts.sum(axis=0)[:_FINITE]
    total = int(both.sum())
    if not total:
        return 0.0
    place = int(np.searchsorted(np.cumsum(both), share * total, side="left"))
    return 0.0 if place < 4 else float(edges(place, place)[0])

"""A sample of a tensor's elements, in runs, which tells nearly where a threshold lies."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from surgeon.lazy import Blocks, LazyTensor, Operands, Scratch, is_stored
from surgeon.numeric.dtypes import DTYPES, Array, upcast

# Runs of so many elements, of one element in 64.
_RUN, _SAMPLED = 512, 64
_FEWEST_RUNS, _MOST_RUNS, _LEAST_SPREAD = 32, 128, 32


def sample(operands: Operands, working: np.dtype[Any]) -> Blocks:
    """Return the same elements of all operands, one run after the other, as they are calculated."""
    starts = run_starts(operands.tensors[0].spec.count)
    return Blocks((_sampled(tensor, starts, working) for tensor in operands.tensors), 0)


def run_starts(size: int) -> range:
    """Return where the runs of so many elements begin."""
    runs = min(_MOST_RUNS, max(_FEWEST_RUNS, size // (_RUN * _SAMPLED)))
    return range(0, size - _RUN + 1, size // runs)


def _sampled(tensor: LazyTensor, starts: range, working: np.dtype[Any]) -> Array:
    """Return the values of the runs that begin at these places."""
    dtype = DTYPES[tensor.spec.dtype].storage if tensor.is_exact else working
    found = np.empty((len(starts), _RUN), dtype)
    if is_stored(tensor):  # many small reads: nothing is to be made for each
        for row, start in zip(found, starts, strict=True):
            place = tensor.offset + start * dtype.itemsize
            tensor.file.read_into(place, row.view(np.uint8).data)
    scratch = Scratch()
    for row, start in zip(found, starts, strict=True) if not is_stored(tensor) else ():
        with scratch.scope():
            if tensor.is_exact:
                row[:] = tensor.elements(start, start + _RUN, scratch)
            else:
                row[:] = tensor.values(start, start + _RUN, scratch, working)
    flat = found.reshape(-1)
    if flat.dtype == working:
        return flat
    return upcast(flat, tensor.spec.dtype, np.empty(len(flat), working))


def spread(sampled: Array, pivot: float) -> int:
    """Return how far from a sampled value's place the same share of the tensor may end.

    Values in one run are often alike, and runs beside one another, so that the error is told by how
    much the number of values from `pivot` on changes from run to run: three standard ones.
    """
    above = np.count_nonzero(sampled.reshape(-1, _RUN) >= pivot, axis=1)
    return _LEAST_SPREAD + int(3 * sqrt(np.square(np.diff(above)).sum() / 2))

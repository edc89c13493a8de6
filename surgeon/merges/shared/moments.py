"""Root mean squares of task vectors, whatever their size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import frexp, isfinite, ldexp, sqrt

import numpy as np

from surgeon.lazy import Blocks, Operands, StoredBlocks
from surgeon.numeric import compiled
from surgeon.numeric.dtypes import Array
from surgeon.numeric.sums import sum_of

# Sums of squares within these have not lost anything to underflow, nor overflowed.
_LEAST, _MOST = 1e-200, 1e300

# New arrays of values, one for each model.
Values = Callable[[Blocks], Sequence[Array]]
# Which elements of task vectors count, the others being 0.
Kept = Callable[[StoredBlocks], Array]


def changes(blocks: Blocks) -> list[Array]:
    """Return the models' task vectors."""
    return [np.subtract(block, blocks[0]) for block in blocks[1:]]


def root_mean_squares(operands: Operands, values: Values, kept: Kept | None = None) -> list[float]:
    """Return the root mean square of each model's values.

    Where these are changes of which some are `kept`, this says which, for compiled loops.
    """
    if operands.are_compiled and (kept or values is changes):
        sums = _compiled_sums(operands, kept)
    else:
        sums = _sums_of_squares(operands, values, None)
    count = max(1, operands.tensors[0].spec.count)
    if all(_LEAST < total < _MOST for total in sums):
        return [sqrt(total / count) for total in sums]
    scales = [_power_of_two(largest) for largest in _largest(operands, values)]
    sums = _sums_of_squares(operands, values, scales)
    return [sqrt(total / count) * scale for total, scale in zip(sums, scales, strict=True)]


def _power_of_two(value: float) -> float:
    return ldexp(1.0, frexp(value)[1] - 1) if isfinite(value) and value else 1.0


def _compiled_sums(operands: Operands, kept: Kept | None) -> list[float]:
    totals = [0.0] * (len(operands.tensors) - 1)
    for stored in operands.stored_blocks():
        mask = kept(stored) if kept else None
        for model, block in enumerate(stored[1:]):
            found = compiled.products([stored[0], block], 1, relative=True, mask=mask)
            totals[model] += float(found[0, 0, 0])
    return totals


def _sums_of_squares(
    operands: Operands, values: Values, scales: Sequence[float] | None
) -> list[float]:
    models = len(operands.tensors) - 1
    totals = [0.0] * models
    for blocks in operands.blocks(np.dtype(np.float64)):
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for model, array in enumerate(values(blocks)):
                if scales:
                    np.divide(array, scales[model], out=array)
                totals[model] += sum_of(np.square(array, out=array))
    return totals


def _largest(operands: Operands, values: Values) -> list[float]:
    models = len(operands.tensors) - 1
    found = [0.0] * models
    for blocks in operands.blocks(np.dtype(np.float64)):
        with np.errstate(over="ignore", invalid="ignore"):
            largest = [float(np.max(np.abs(block), initial=0.0)) for block in values(blocks)]
        found = [max(pair) for pair in zip(found, largest, strict=True)]
    return found

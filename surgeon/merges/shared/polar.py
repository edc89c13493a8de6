"""Singular vectors: what merges by decomposition share. Computed by LAPACK in float64.

Directions whose singular value is zero, but for rounding, are left out: they are whatever LAPACK
makes of them, and no part of the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from surgeon.lazy import Kernel
from surgeon.merges.shared import Arithmetic, TensorContext, WholeArithmetic
from surgeon.numeric.decompositions import svd
from surgeon.numeric.dtypes import Array


def singular(matrix: Array) -> tuple[Array, Array, Array]:
    """Return U, the singular values that are not zero, and V, transposed."""
    left, values, right = svd(matrix)
    least = max(matrix.shape) * np.finfo(np.float64).eps * values.max(initial=0.0)
    count = int((values > least).sum())
    return left[:, :count], values[:count], right[:count]


def orthogonal_factor(matrix: Array) -> Array:
    """Return the nearest matrix of orthonormal columns (rows, where it is wide): U V (Procrustes).

    Where the matrix has not full rank, of columns orthonormal in the space that it reaches.
    """
    left, _, right = singular(matrix)
    return np.asarray(left @ right)


def of_task_vectors(
    update: Callable[[Sequence[Array]], Array],
    at: TensorContext,
    models: int,
    factor: float,
    *,
    is_matrix: bool,
) -> Arithmetic | WholeArithmetic:
    """Return b + factor · update(d₁, ...) for a matrix, else b + factor · mean(dᵢ)."""
    if not is_matrix:
        return Arithmetic(_mean_kernel(factor / models))

    def combine(values: Sequence[Array]) -> Array:
        state, *others = values
        if not all(np.isfinite(value).all() for value in values):
            return np.full(state.shape, np.nan)  # LAPACK would not converge
        return np.asarray(state - factor * update([state - other for other in others]))

    # Differences, and singular vectors of each and of all, and LAPACK's own copies.
    return WholeArithmetic(combine, spare_bytes=(2 * models + 6) * 8 * prod(at.shape))


def _mean_kernel(factor: float) -> Kernel:
    def combine(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
        # Differences from the others, subtracted: -0 less what is nothing stays -0.
        np.subtract(blocks[0], blocks[1], out=out)
        for block in blocks[2:]:
            out += blocks[0] - block
        out *= factor
        return np.subtract(blocks[0], out, out=out)

    return combine

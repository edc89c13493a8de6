"""Sparse sums of given vectors that come near others: orthogonal matching pursuit."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from surgeon.numeric.dtypes import Array

# What is left of a vector, as a fraction of it, that is rounding and nothing to be matched.
_NOTHING = 1e-12

# Yields (number of the first, some vectors in the rows of a matrix), all of them in their order.
Blocks = Callable[[], Iterable[tuple[int, Array]]]


def matching_pursuit(targets: Array, blocks: Blocks, count: int) -> tuple[Array, Array]:
    """Return which vectors each target is a sum of, at most `count`, and by what coefficients.

    Targets are float64 (targets, size), both results (targets, count); of a target that is matched
    before, the coefficients left are 0. Each step takes the vector whose inner product with what is
    left of the target is the largest in magnitude, and projects the target on all that were taken.
    Pati, Rezaiifar and Krishnaprasad 1993, Orthogonal Matching Pursuit, section 2. The vectors are
    gone through `count` times; held are `count` orthonormal ones for each target.
    """
    several, size = targets.shape
    left = targets.copy()
    length = np.linalg.norm(targets, axis=1)
    basis = np.zeros((several, count, size))
    triangle = np.zeros((several, count, count))
    inner = np.zeros((several, count))
    chosen = np.full((several, count), -1)
    for step in range(count):
        active = np.linalg.norm(left, axis=1) > _NOTHING * length
        triangle[:, step, step] = 1
        if not active.any():
            continue
        number, vector = _nearest(left, blocks, chosen[:, :step])
        active &= number >= 0
        chosen[active, step] = number[active]
        rest = np.where(active[:, None], vector, 0)
        # Twice, since what the first pass leaves of the basis is rounding of the whole vector.
        for _ in range(2):
            onto = np.einsum("bks,bs->bk", basis[:, :step], rest)
            rest = rest - np.einsum("bks,bk->bs", basis[:, :step], onto)
            triangle[:, :step, step] += onto
        norm = np.linalg.norm(rest, axis=1)
        active &= norm > _NOTHING * np.linalg.norm(vector, axis=1)
        triangle[:, step, step] = np.where(active, norm, 1)
        basis[active, step] = rest[active] / norm[active, None]
        inner[:, step] = np.einsum("bs,bs->b", basis[:, step], left)
        left -= basis[:, step] * inner[:, step, None]
    coefficients = np.linalg.solve(triangle, inner[..., None])[..., 0]
    return np.where(chosen < 0, 0, chosen), np.where(chosen < 0, 0.0, coefficients)


def _nearest(left: Array, blocks: Blocks, taken: Array) -> tuple[Array, Array]:
    """Return the vector that goes along most with what is left of each target, and its number."""
    best = np.full(len(left), -1.0)
    number = np.full(len(left), -1)
    vector = np.zeros_like(left)
    for first, block in blocks():
        along = np.abs(left @ block.T)
        row, place = np.nonzero((taken >= first) & (taken < first + len(block)))
        along[row, taken[row, place] - first] = -1
        index = np.argmax(along, axis=1)
        value = along[np.arange(len(left)), index]
        better = value > best
        best[better] = value[better]
        number[better] = first + index[better]
        vector[better] = block[index[better]]
    return number, vector

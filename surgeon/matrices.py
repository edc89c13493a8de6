"""Products and decompositions of matrices whose bits do not depend on how many cores there are."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from surgeon.dtypes import Array


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def on_one_thread() -> AbstractContextManager[object]:
    """Have NumPy's linear algebra library use one thread.

    It rounds sums in another order with each number of threads, from about 300 rows and columns
    on. The cores are not idle: workers are processes, each with a tensor of its own.
    """
    limited: AbstractContextManager[object] = _libraries().limit(limits=1, user_api="blas")
    return limited


def product(left: Array, right: Array) -> Array:
    """Return the product of two float64 matrices."""
    with on_one_thread(), np.errstate(over="ignore", invalid="ignore"):
        multiplied: Array = np.matmul(left, right)
    return multiplied


def right_singular(matrix: Array, rank: int) -> tuple[Array, Array]:
    """Return the first right singular vectors, as rows, and all singular values.

    Of each vector the entry of largest magnitude (the first of them) is positive.
    """
    with on_one_thread():
        _, values, vectors = np.linalg.svd(matrix, full_matrices=False)
    vectors = vectors[:rank]
    largest = np.abs(vectors).argmax(axis=1)[:, None]
    return vectors * np.sign(np.take_along_axis(vectors, largest, axis=1)), values


def coefficients(matrix: Array, rows: Array) -> Array:
    """Return what the rows have to be multiplied with to come nearest to the matrix.

    `rows` are linearly independent; least squares, through the normal equations: fit for rows
    that are nearly orthonormal.
    """
    with on_one_thread():
        solved: Array = np.linalg.solve(rows @ rows.T, rows @ matrix.T).T
    return solved

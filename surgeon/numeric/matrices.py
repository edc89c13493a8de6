"""Products and decompositions of matrices.

NumPy's linear algebra library rounds sums in another order with each number of threads, from about
300 rows and columns on. The command line therefore pins it to one thread (the cores are not idle:
workers are processes); who calls surgeon from Python gets the same bits with the same pin.
"""

from __future__ import annotations

from surgeon.base.deferred import np
from surgeon.numeric.dtypes import Array


def product(left: Array, right: Array) -> Array:
    """Return the product of two float64 matrices."""
    with np.errstate(over="ignore", invalid="ignore"):
        multiplied: Array = np.matmul(left, right)
    return multiplied


def right_singular(matrix: Array, rank: int) -> tuple[Array, Array]:
    """Return the first right singular vectors, as rows, and all singular values.

    Of each vector the entry of largest magnitude (the first of them) is positive.
    """
    _, values, vectors = np.linalg.svd(matrix, full_matrices=False)
    vectors = vectors[:rank]
    largest = np.abs(vectors).argmax(axis=1)[:, None]
    return vectors * np.sign(np.take_along_axis(vectors, largest, axis=1)), values


def coefficients(matrix: Array, rows: Array) -> Array:
    """Return what the rows have to be multiplied with to come nearest to the matrix.

    `rows` are linearly independent; least squares, through the normal equations: fit for rows
    that are nearly orthonormal.
    """
    solved: Array = np.linalg.solve(rows @ rows.T, rows @ matrix.T).T
    return solved

"""Products and decompositions of matrices.

NumPy's linear algebra library rounds sums in another order with each number of threads, from about
300 rows and columns on. The command line therefore pins it to one thread (the cores are not idle:
workers are processes); who calls surgeon from Python gets the same bits with the same pin.
"""

from __future__ import annotations

from surgeon.base.deferred import np
from surgeon.numeric.decompositions import svd
from surgeon.numeric.dtypes import Array

# From this size on, and for no more than one of so many, singular vectors are found apart.
_LARGE, _FEW = 256, 16
# Vectors beside those asked for: their values fall off faster from the first to the last.
_MORE = 8
# How far a triplet may be off, of the largest value: some roundings, as LAPACK's are.
_RESIDUAL = 2.0**-48
# Products of three values above this, and below its inverse, are numbers of ordinary size.
_SQUARABLE = 2.0**-300


def product(left: Array, right: Array) -> Array:
    """Return the product of two float64 matrices."""
    with np.errstate(over="ignore", invalid="ignore"):
        multiplied: Array = np.matmul(left, right)
    return multiplied


def singular(matrix: Array, rank: int) -> tuple[Array, Array, Array]:
    """Return the first left singular vectors, as columns, their values, and the right, as rows.

    Where few of many are asked for, they come out of a block Krylov space (Musco & Musco 2015,
    arXiv 1504.05477) that grows until their residuals are what rounding leaves in LAPACK's, too.
    Where it would grow too far, as with spectra that hardly fall, the whole matrix is decomposed.
    Raises LinAlgError where it does not converge.
    """
    least = min(matrix.shape)
    found = _leading(matrix, rank) if least >= _LARGE and rank * _FEW <= least else None
    if found is None:
        left, values, right = svd(matrix)
        found = left[:, :rank], values[:rank], right[:rank]
    return found


def right_singular(matrix: Array, rank: int) -> Array:
    """Return the first right singular vectors, as rows.

    Of each vector the entry of largest magnitude (the first of them) is positive.
    """
    vectors = singular(matrix, rank)[2]
    largest = np.abs(vectors).argmax(axis=1)[:, None]
    signs = np.sign(np.take_along_axis(vectors, largest, axis=1))
    return np.asarray(vectors * signs)


def kept_share(matrix: Array, right: Array) -> float:
    """Return the share of a matrix's squared norm in the space of orthonormal rows; 1 of nothing.

    By what is left of it: the difference of two norms would be lost in their rounding.
    """
    total = float(np.vdot(matrix, matrix))
    left_over = (matrix @ right.T) @ right
    np.subtract(matrix, left_over, out=left_over)
    return 1 - float(np.vdot(left_over, left_over)) / total if total else 1.0


def _leading(matrix: Array, rank: int) -> tuple[Array, Array, Array] | None:
    """Return the first singular triplets; None where that takes as long as all of them."""
    if not matrix.any():
        rows, columns = matrix.shape
        return np.eye(rows, rank), np.zeros(rank), np.eye(rank, columns)
    columns = matrix.shape[1]
    largest = max(matrix.max(), -matrix.min())
    if not _SQUARABLE < largest < 1 / _SQUARABLE:
        return None
    width = rank + _MORE
    most = min(matrix.shape) // 4
    basis = np.empty((columns, most))
    image = np.empty((matrix.shape[0], most))
    block = np.random.Generator(np.random.PCG64(0)).random((columns, width)) - 0.5
    size, look = 0, 2 * width
    while size + width <= most:
        # Once is not enough where most of the block lies in what is there already.
        for _ in range(2):
            block -= basis[:, :size] @ (basis[:, :size].T @ block)
            block = np.linalg.qr(block)[0]
        basis[:, size : size + width] = block
        image[:, size : size + width] = matrix @ block
        size += width
        if size >= look:
            look = size + max(width, size // 3)
            orthonormal, small = np.linalg.qr(image[:, :size])
            turned, values, weights = np.linalg.svd(small)
            left = orthonormal @ turned[:, :rank]
            right = weights[:rank] @ basis[:, :size].T
            residuals = left.T @ matrix - values[:rank, None] * right
            if np.linalg.norm(residuals, axis=1).max() <= _RESIDUAL * values[0]:
                return left, values[:rank], right
        block = matrix.T @ image[:, size - width : size]
    return None


def coefficients(matrix: Array, rows: Array) -> Array:
    """Return what the rows have to be multiplied with to come nearest to the matrix.

    `rows` are linearly independent; least squares, through the normal equations: fit for rows
    that are nearly orthonormal.
    """
    solved: Array = np.linalg.solve(rows @ rows.T, rows @ matrix.T).T
    return solved

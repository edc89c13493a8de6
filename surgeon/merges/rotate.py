"""A model turned as a whole to lie like another."""

from collections.abc import Sequence
from math import prod
from typing import Annotated

import numpy as np

from surgeon.merges.shared import Arithmetic, TensorContext, Varying, WholeArithmetic, merge
from surgeon.merges.shared.line import interpolation
from surgeon.numeric.decompositions import qr, svd
from surgeon.numeric.dtypes import Array


@merge(
    example={"models": ["other"]},
    paper="Schönemann 1966, A generalized solution of the orthogonal Procrustes problem, "
    "https://doi.org/10.1007/BF02289451",
    models=1,
)
def rotate(
    *,
    at: TensorContext,
    t: Annotated[float, Varying(0, 1), "how far to go on to the other model, once turned"] = 0.0,
    center: Annotated[bool, "turn about the mean row, which becomes the other model's"] = True,
) -> Arithmetic | WholeArithmetic:
    """Turn the base model's matrices to lie as another model's do.

    For tensors of rank 2 or more, as matrices W of the base model and V of the other with one row
    per output: with A = W - μ and B = V - ν, μ and ν their mean rows (0 without `center`), the
    orthogonal Q for which ‖A Q - B‖ is least, Q = U Zᵀ of the decomposition AᵀB = U S Zᵀ; the
    result is (1 - t) A Q + t B + ν. Lengths of rows and angles between them are those of A where t
    is 0, and where it is 1 the result is V. Where B is zero, Q is 1. Other tensors are
    interpolated, (1 - t) w + t v. A matrix is decomposed as a whole, in float64.

    It is `rotate` of sd-mecha (https://github.com/ljleb/sd-mecha) with an alignment of 1, but for
    convolutions, whose rows there are one per output and input.
    """
    if len(at.shape) < 2:
        return Arithmetic(interpolation(t))
    rows, columns = at.shape[0], prod(at.shape[1:])

    def combine(values: Sequence[Array]) -> Array:
        ours, theirs = (value.reshape(rows, columns) for value in values)
        if not all(np.isfinite(value).all() for value in values):
            return np.full(at.shape, np.nan)  # LAPACK would not converge
        if np.array_equal(ours, theirs):
            return np.array(values[0])
        middle = theirs.mean(axis=0) if center else np.zeros(columns)
        a = ours - ours.mean(axis=0) if center else ours
        b = theirs - middle
        return np.asarray(((1 - t) * _turned(a, b) + t * b + middle).reshape(at.shape))

    least = min(rows, columns)
    # Differences, both factors of each, what is made of them, and LAPACK's copies.
    spare = 8 * (6 * rows * columns + 4 * least * (columns + rows) + 12 * least * least)
    return WholeArithmetic(combine, spare_bytes=spare)


def _turned(a: Array, b: Array) -> Array:
    """Return A Q, as near to B as an orthogonal Q brings it."""
    if not b.any():
        return a
    # AᵀB is as large as the rows are long, but of the rank of their number at most.
    our_rows = qr(a.T)[1]
    right, their_rows = qr(b.T)
    u, _, z = svd(our_rows @ their_rows.T)
    return np.asarray(our_rows.T @ (u @ z) @ right.T)

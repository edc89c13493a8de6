"""Spherical interpolation of two models."""

from collections.abc import Sequence
from math import acos, sin, sqrt
from typing import Annotated

import numpy as np

from surgeon.dtypes import Array
from surgeon.lazy import Operands
from surgeon.merging import Arithmetic, Varying, merge

# Beyond this cosine the arc is so flat that sin θ loses its digits and a straight line serves.
_PARALLEL = 0.9995


@merge(
    example={"models": ["other"], "t": 0.5},
    paper="Shoemake 1985, Animating rotation with quaternion curves, "
    "https://doi.org/10.1145/325165.325242",
    models=1,
)
def slerp(
    *, t: Annotated[float, Varying(0, 1), "0 keeps the state, 1 takes the model"]
) -> Arithmetic:
    """Interpolate along the arc between the state and one other model.

    Per tensor, over all its elements, with c the cosine between them and θ = acos c:
    [sin((1-t)θ) b + sin(tθ) x] / sin θ on the unnormalised tensors; (1-t) b + t x where
    |c| > 0.9995 or a norm is zero.
    """

    def shares(operands: Operands) -> tuple[float, float]:
        bb = bx = xx = 0.0
        for b, x in operands.blocks():
            bb += _inner(b, b)
            bx += _inner(b, x)
            xx += _inner(x, x)
        norms = sqrt(bb) * sqrt(xx)
        cosine = max(-1.0, min(1.0, bx / norms)) if norms else 1.0
        if abs(cosine) > _PARALLEL:
            return 1 - t, t
        angle = acos(cosine)
        return sin((1 - t) * angle) / sin(angle), sin(t * angle) / sin(angle)

    def combine(blocks: Sequence[Array], statistics: tuple[float, float], out: Array) -> Array:
        np.multiply(blocks[0], statistics[0], out=out)
        out += blocks[1] * statistics[1]
        return out

    return Arithmetic(combine, shares)


def _inner(a: Array, b: Array) -> float:
    """Return an inner product; np.dot's bits depend on the number of threads."""
    return float(np.add.reduce(np.multiply(a, b, dtype=np.float64)))

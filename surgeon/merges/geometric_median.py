"""The point from which models are least far away."""

from math import sqrt
from typing import Annotated

import numpy as np

from surgeon.merges.shared import Arithmetic, Varying, merge, total_weight
from surgeon.merges.shared.gram import Vectors, by_inner_products
from surgeon.numeric.dtypes import Array


@merge(
    example={"models": ["other", "third"]},
    paper="Vardi & Zhang 2000, The multivariate L1-median and associated data depth, "
    "https://doi.org/10.1073/pnas.97.4.1423",
)
def geometric_median(
    *,
    weights: Annotated[
        list[float],
        Varying(minimum=0, per="operand", default=1),
        "one number for all, or one per operand, the base model first; default equal",
    ],
    tolerance: Annotated[
        float,
        "end after a step shorter than this share of the mean distance",
        {"exclusiveMinimum": 0},
    ] = 1e-14,
    max_iterations: Annotated[int, "end after as many steps", {"minimum": 1}] = 1000,
) -> Arithmetic:
    """Take the point whose distances to all models add up to the least.

    The x that minimises Σ wᵢ ‖x - xᵢ‖ over all operands, a tensor being one vector: a mean that
    one model far away cannot move far. A model is the median itself where what pulls at it is no
    more than its weight, ‖Σ wᵢ (xᵢ - xₖ) / ‖xᵢ - xₖ‖‖ <= wₖ; else Weiszfeld's iteration from the
    mean on, x ← (Σ wᵢ xᵢ / ‖x - xᵢ‖) / (Σ wᵢ / ‖x - xᵢ‖). Of two models of one weight, where all
    points between them are as good, it is the mean. All iterates are combinations of the xᵢ, so
    that inner products of what they add to the base model are enough, and the data are read twice.
    """
    shares = np.array(weights) / total_weight(weights)

    def factors(products: Array) -> Array:
        # The base model is the point at which all differences begin.
        points = np.pad(products[0], ((1, 0), (1, 0)))
        return _median(points, shares, tolerance, max_iterations)[None, 1:]

    return by_inner_products(Vectors(), factors, relative=True)


def _median(points: Array, shares: Array, tolerance: float, max_iterations: int) -> Array:
    """Return each point's share in the median, from inner products."""
    if not np.isfinite(points).all():
        return np.full(len(shares), np.nan)
    corners = np.eye(len(shares))
    apart = np.stack([_distances(corner, points) for corner in corners])
    for corner, distances in zip(corners, apart, strict=True):
        here = distances == 0
        pulls = np.where(here, 0.0, shares / np.where(here, 1.0, distances))
        if _length(pulls - pulls.sum() * corner, points) <= shares[here].sum():
            # Two that pull alike: all that lies between them is as good.
            return shares if _is_between_two(shares, distances) else corner
    median = shares
    for _ in range(max_iterations):
        distances = _distances(median, points)
        mean = float(shares @ distances)
        pulls = shares / np.maximum(distances, np.finfo(np.float64).tiny)
        step = pulls / pulls.sum() - median
        median = median + step
        if _length(step, points) <= tolerance * mean:
            break
    return np.asarray(median)


def _is_between_two(shares: Array, distances: Array) -> bool:
    """Say whether half of the weight is at a point, and half at one other."""
    others = distances[distances > 0]
    halves = abs(float(shares[distances == 0].sum()) - 0.5) < 1e-12
    return bool(halves and len(others) and (others == others[0]).all() and len(shares) == 2)


def _distances(place: Array, points: Array) -> Array:
    """Return how far each point is from a combination of them whose shares add up to 1."""
    own = np.diagonal(points)
    squares = own - 2 * points @ place + place @ points @ place
    return np.asarray(np.sqrt(np.maximum(squares, 0.0)))


def _length(combined: Array, points: Array) -> float:
    return sqrt(max(0.0, float(combined @ points @ combined)))

"""Spherical mean of several tensors at once, in closed form."""

from typing import Annotated

import numpy as np

from surgeon.merges.shared import Arithmetic, Varying, merge, total_weight
from surgeon.merges.shared.gram import Vectors, by_inner_products, norms_of
from surgeon.numeric.dtypes import Array

# Directions whose weighted sum is shorter than this, of what it could be, cancel: its length is the
# root of a sum of inner products, which are exact to 1e-16 or so.
_CANCELLED = 1e-7


@merge(
    example={"models": ["other"]},
    paper="Goddard, Multi-SLERP, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
)
def multislerp(
    *,
    weights: Annotated[
        list[float],
        Varying(per="point", default=1),
        "one number for all, or one per operand, the base model first; with `relative` per model",
    ],
    relative: Annotated[bool, "turn what the models add to the base model"] = False,
    normalize: Annotated[bool, "divide the weights by their sum"] = True,
) -> Arithmetic:
    """Take the mean direction of several models, and their mean length.

    With uᵢ = xᵢ/‖xᵢ‖ over all operands: m · Σ wᵢ‖xᵢ‖, where m = Σ wᵢ uᵢ made a unit
    vector. With `relative` over the models' task vectors, added to the base model. The published
    iteration (tangent space at m, then back) reduces to this, since the tangent vectors' weighted
    sum at m is zero. A zero vector has no direction, but counts with its length. Where directions
    cancel (‖Σ wᵢ uᵢ‖ ≤ 1e-7 Σ |wᵢ|), Σ wᵢ xᵢ. Raises where weights to be divided by their sum add
    up to zero.

    mergekit 0.1.5 adds 1e-8 to norms, and refuses more than two directions that cancel.
    """
    total = total_weight(weights) if normalize else 1.0
    shares = np.array(weights) / total
    vectors = Vectors()

    def factors(products: Array) -> Array:
        norms = norms_of(products)
        lengths = np.where(norms == 0, 1.0, norms)
        directed = np.where(norms == 0, 0.0, shares / lengths)  # Σ wᵢ uᵢ in terms of xᵢ
        squared = np.einsum("vi,vij,vj->v", directed, products, directed)
        mean_norm = np.sqrt(np.maximum(squared, 0.0))
        cancelled = mean_norm <= _CANCELLED * np.abs(shares).sum()
        scale = (norms @ shares) / np.where(cancelled, 1.0, mean_norm)
        return np.where(cancelled[:, None], shares, directed * scale[:, None])

    return by_inner_products(vectors, factors, relative=relative)

"""Spherical interpolation of two tensors, rows or columns, or of what two models changed."""

from typing import Annotated

from surgeon.base.errors import PlanError
from surgeon.merges.shared import Arithmetic, TensorContext, Varying, merge, total_weight
from surgeon.merges.shared.gram import Granularity, Vectors, along_arc, by_inner_products


@merge(
    example={"models": ["other"], "weights": [0.5, 0.5], "granularity": "row"},
    paper="Shoemake 1985, Animating rotation with quaternion curves, "
    "https://doi.org/10.1145/325165.325242; as NuSLERP in mergekit, "
    "https://github.com/arcee-ai/mergekit",
    models=(1, 2),
)
def nuslerp(
    *,
    at: TensorContext,
    weights: Annotated[
        list[float],
        Varying(per="point", default=1),
        "one per tensor interpolated between: state and model, or with `relative` the two models",
    ],
    relative: Annotated[bool, "interpolate what two models add to the base model"] = False,
    granularity: Annotated[
        Granularity, "what turns as one: the tensor, each output row, or each column (dimension 1)"
    ] = "tensor",
) -> Arithmetic:
    """Interpolate along the arc between two models, or between their changes.

    Without `relative` between the base model and one model; with it, between the task vectors of
    two models, whose result is added to it. t = w₂ / (w₁ + w₂), and as in slerp, with c the
    cosine and θ = acos c: [sin((1-t)θ) x₁ + sin(tθ) x₂] / sin θ on the unnormalised vectors;
    (1-t) x₁ + t x₂ where |c| > 0.9995 or a norm is zero. A vector is the whole tensor, or all that
    has one index of dimension 0 (row) or 1 (column); tensors of rank 0 and 1 are one vector.
    Raises where the weights add up to zero.

    mergekit 0.1.5 keeps to the arc up to a cosine of 1, takes t = 1/2 where the weights add up to
    zero, and calls columns rows (`nuslerp_row_wise`); its other vectors are those of the last
    dimension, which are rows for matrices only.
    """
    if len(weights) != 2:
        wanted = "two models with 'relative'" if relative else "one model without 'relative'"
        raise PlanError(f"interpolates between two: takes {wanted}")
    t = weights[1] / total_weight(weights)
    vectors = Vectors.of(granularity, at.shape)
    return by_inner_products(vectors, along_arc(t), relative=relative)

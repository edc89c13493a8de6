"""Spherical interpolation of two models."""

from typing import Annotated

from surgeon.merges.shared import Arithmetic, Varying, merge
from surgeon.merges.shared.gram import Vectors, along_arc, by_inner_products


@merge(
    example={"models": ["other"], "t": 0.5},
    paper="Shoemake 1985, Animating rotation with quaternion curves, "
    "https://doi.org/10.1145/325165.325242",
    models=1,
)
def slerp(
    *, t: Annotated[float, Varying(), "0 keeps the base model, 1 takes the model, or beyond both"]
) -> Arithmetic:
    """Interpolate along the arc between the base model and one other model.

    Per tensor, over all its elements, with c the cosine between them and θ = acos c:
    [sin((1-t)θ) b + sin(tθ) x] / sin θ on the unnormalised tensors; (1-t) b + t x where
    |c| > 0.9995 or a norm is zero.
    """
    return by_inner_products(Vectors(), along_arc(t))

"""Mean of fine-tuned models, moved towards the model that they started from."""

from typing import Annotated, Literal

import numpy as np

from surgeon.merges.shared import Arithmetic, TensorContext, merge
from surgeon.merges.shared.gram import Vectors, by_inner_products, cosines_of, norms_of
from surgeon.numeric.dtypes import Array


@merge(
    example={"models": ["other", "third"]},
    paper="Jang et al. 2024, Model Stock: All we need is just a few fine-tuned models, "
    "https://arxiv.org/abs/2403.19522",
    models=(2, None),
)
def model_stock(
    *,
    at: TensorContext,
    granularity: Annotated[
        Literal["tensor", "row"], "what has an angle of its own: the tensor, or each output row"
    ] = "tensor",
) -> Arithmetic:
    """Move the mean of models towards the base model, by how they differ.

    With c the mean of cos(dᵢ, dⱼ) over pairs of task vectors: t = N c / (1 + (N-1) c), and
    t · mean(xᵢ) + (1-t) b (equation 4). Where c ≤ 0 the models agree on nothing and t = 0, which
    keeps the base model; a task vector of zero has cosine 0 with all others. A row is an index of
    dimension 0; tensors of rank 0 and 1 are one row.

    mergekit 0.1.5 takes products of norms below 1e-6 as 1e-6, so that small task vectors look
    orthogonal, and lets t be negative.
    """
    vectors = Vectors.of(granularity, at.shape)

    def factors(products: Array) -> Array:
        count = products.shape[1]
        norms = norms_of(products)
        cosines = cosines_of(products, norms)
        first, second = np.triu_indices(count, 1)
        zero = (norms == 0)[:, first] | (norms == 0)[:, second]
        mean = np.where(zero, 0.0, cosines[:, first, second]).mean(axis=1)
        t = np.where(mean <= 0, 0.0, np.minimum(1.0, count * mean / (1 + (count - 1) * mean)))
        return np.repeat(t[:, None] / count, count, axis=1)

    return by_inner_products(vectors, factors, relative=True)

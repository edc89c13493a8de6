"""Merge what is left of task vectors after their singular vectors are made orthogonal."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from surgeon.merges.shared import Arithmetic, TensorContext, Varying, WholeArithmetic, merge
from surgeon.merges.shared.polar import of_task_vectors, orthogonal_factor
from surgeon.numeric.decompositions import svd
from surgeon.numeric.dtypes import Array


@merge(
    example={"models": ["other", "third"]},
    paper="Gargiulo et al. 2024, Task Singular Vectors: Reducing Task Interference in Model "
    "Merging, https://arxiv.org/abs/2412.00081",
)
def tsv(
    *,
    at: TensorContext,
    lambda_: Annotated[float, Varying(), "times what is added to the base model"] = 1.0,
) -> Arithmetic | WholeArithmetic:
    """Add models' main changes, with their singular vectors kept apart.

    For matrices (rank 2; TSV-M, algorithm 1): of each task vector dᵢ = U S Vᵀ the rank/N largest
    singular values and vectors, rounded down, N the number of models; the vectors of all of them
    side by side, made orthonormal (Procrustes: of a matrix's SVD P Σ Qᵀ, P Qᵀ), and put together
    again with the singular values: b + λ U⊥ S V⊥ᵀ. Other tensors, and matrices of rank below N:
    b + λ · mean(dᵢ), as in the authors' code, which treats convolutions so, too.

    Directions that several models share are made orthonormal only as far as they differ; the
    authors' code fills up with arbitrary ones. A matrix is decomposed as a whole, in float64.
    """
    models = len(at.streams)
    kept = min(at.shape) // models if len(at.shape) == 2 else 0

    def update(deltas: Sequence[Array]) -> Array:
        parts = [svd(delta) for delta in deltas]
        left = orthogonal_factor(np.hstack([u[:, :kept] for u, _, _ in parts]))
        values = np.concatenate([s[:kept] for _, s, _ in parts])
        right = orthogonal_factor(np.vstack([v[:kept] for _, _, v in parts]))
        return np.asarray(left * values @ right)

    return of_task_vectors(update, at, models, lambda_, is_matrix=kept > 0)

"""Merge task vectors so that all directions of their sum are equally strong."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from surgeon.merges.shared import Arithmetic, TensorContext, Varying, WholeArithmetic, merge
from surgeon.merges.shared.polar import of_task_vectors, singular
from surgeon.numeric.dtypes import Array


@merge(
    example={"models": ["other", "third"]},
    paper="Marczak et al. 2025, No Task Left Behind: Isotropic Model Merging with Common and "
    "Task-Specific Subspaces, https://arxiv.org/abs/2502.04959",
)
def isotropic(
    *,
    at: TensorContext,
    lambda_: Annotated[float, Varying(), "times what is added to the base model"] = 1.0,
) -> Arithmetic | WholeArithmetic:
    """Add the models' changes, all directions of their sum equally strong.

    For matrices (rank 2; Iso-C): of the sum of all task vectors dᵢ, with SVD U S Vᵀ, every singular
    value becomes the mean of all: b + λ mean(S) U Vᵀ. Other tensors: b + λ · mean(dᵢ), as in the
    authors' code, which treats convolutions so, too.

    Singular values of zero count in the mean and stay zero: their directions are arbitrary. A
    matrix is decomposed as a whole, in float64.
    """
    is_matrix = len(at.shape) == 2 and min(at.shape) > 0

    def update(deltas: Sequence[Array]) -> Array:
        left, values, right = singular(np.add.reduce(deltas))
        return np.asarray(float(values.sum()) / min(at.shape) * (left @ right))

    return of_task_vectors(update, at, len(at.streams), lambda_, is_matrix=is_matrix)

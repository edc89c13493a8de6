"""Linear layers that come nearest to what each model's layer made of its inputs."""

from collections.abc import Sequence
from math import prod
from typing import Annotated

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.merges.shared import (
    Arithmetic,
    AuxiliaryTensors,
    TensorContext,
    Varying,
    WholeArithmetic,
    merge,
    within,
)
from surgeon.numeric.dtypes import Array


def _inputs_squared(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    return (shape[1], shape[1]) if len(shape) == 2 else None


@merge(
    example={"models": ["other"], "grams": ["gram", "other_gram"]},
    paper="Jin et al. 2022, Dataless Knowledge Fusion by Merging Weights of Language Models, "
    "https://arxiv.org/abs/2212.09849",
)
def regmean(
    *,
    at: TensorContext,
    grams: Annotated[
        list[str],
        AuxiliaryTensors(_inputs_squared, optional=True),
        "models that hold Gram matrices of inputs, one per operand, the base model's first",
    ],
    alpha: Annotated[
        float, Varying(0, 1), "what is left of a Gram matrix beside its diagonal"
    ] = 0.9,
) -> Arithmetic | WholeArithmetic:
    """Average linear layers so that their outputs change least.

    For a weight W of shape (outputs, inputs): (Σ Gᵢ)⁻¹ Σ Gᵢ Wᵢᵀ, transposed, Gᵢ = XᵢᵀXᵢ of shape
    (inputs, inputs), by the weight's own name in the i-th of `grams`, with what is beside the
    diagonal times `alpha` (equation 2 and section 4.1; 0.9 is the paper's). Collected by
    `surgeon.training.collect_gram`. Tensors that none of the `grams` has are averaged, and so are
    columns of inputs that are zero in all of them. Solved in float64, as W₁ and what the others
    differ from it. Raises for a sum of Gram matrices that is singular otherwise.
    """
    models = len(at.streams) + 1
    if not at.has_auxiliary:
        return Arithmetic(_mean)

    def combine(values: Sequence[Array]) -> Array:
        weights = values[:models]
        found = weights[0] + np.add.reduce([w - weights[0] for w in weights[1:]]) / models
        if not all(np.isfinite(value).all() for value in values):
            return np.full(at.shape, np.nan)
        scaled = [_shrink(gram, alpha) for gram in values[models:]]
        total = np.add.reduce(scaled)
        used = np.diagonal(total) != 0
        moved = np.add.reduce(
            [gram[used] @ (weight - weights[0]).T
             for gram, weight in zip(scaled[1:], weights[1:], strict=True)]
        )  # fmt: skip
        try:
            found[:, used] = weights[0][:, used] + _solve(total[np.ix_(used, used)], moved).T
        except np.linalg.LinAlgError:
            raise PlanError(
                f"'{at.name}': the sum of its Gram matrices is singular; collect them over more "
                "inputs, or let alpha be smaller"
            ) from None
        return np.asarray(found)

    rows = at.shape[1]
    return WholeArithmetic(
        combine, spare_bytes=8 * ((models + 5) * rows * rows + 3 * prod(at.shape))
    )


def _mean(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    np.add(blocks[0], blocks[1], out=out)
    for block in blocks[2:]:
        out += block
    out /= len(blocks)
    return within(blocks, out)


def _shrink(gram: Array, alpha: float) -> Array:
    scaled = gram * alpha
    np.fill_diagonal(scaled, np.diagonal(gram))
    return np.asarray(scaled)


def _solve(matrix: Array, right: Array) -> Array:
    """Solve for a symmetric positive definite matrix; raises LinAlgError where it is singular."""
    # To a diagonal of ones, so that the factor's tells how near to singular the matrix is.
    diagonal = np.diagonal(matrix)
    if (diagonal < 0).any():
        raise np.linalg.LinAlgError
    scale = 1 / np.sqrt(diagonal)
    unit = matrix * scale[:, None] * scale
    lower = np.linalg.cholesky(unit)
    least = np.diagonal(lower).min(initial=1.0) ** 2
    if least <= len(unit) * np.finfo(np.float64).eps:
        raise np.linalg.LinAlgError
    return np.asarray(scale[:, None] * np.linalg.solve(unit, right * scale[:, None]))

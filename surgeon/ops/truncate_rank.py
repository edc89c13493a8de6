"""truncate_rank: matrices of a lower rank, as near as possible."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import LazyTensor, WholeTensor
from surgeon.lazy.values import beyond, require_finite
from surgeon.numeric.dtypes import DTYPES, Array
from surgeon.numeric.matrices import kept_share, singular

_FLOAT64_BYTES = 8


@op(
    group="values",
    example={"target": "encoder.1.weight", "rank": 3},
    paper="Eckart & Young 1936, The approximation of one matrix by another of lower rank, "
    "https://doi.org/10.1007/BF02288367",
)
def truncate_rank(
    draft: Draft,
    *,
    target: Target,
    rank: Annotated[int, "how many singular values are kept of each matrix", {"minimum": 1}],
    energy: Annotated[
        float | None,
        "an error where the rank keeps less than this share of a matrix's squared norm",
        {"exclusiveMinimum": 0, "maximum": 1},
    ] = None,
) -> None:
    """Replace matrices by the nearest ones of a lower rank, in place.

    Of W = U S Vᵀ the largest singular values are kept: of all matrices of that rank the one for
    which the sum of squared differences is least. Shapes stay. Floating-point matrices (rank 2)
    change; others of the target stay as they are, with a note, and so do matrices whose smaller
    side is no larger than `rank`. A matrix is decomposed as a whole, in float64, and rounded once
    (after which the smallest singular values are as small as the dtype's digits). Raises, while
    writing, where one holds NaN or Inf.
    """
    changes: dict[str, LazyTensor] = {}
    kept: list[str] = []
    for name in draft.select(target):
        spec = draft.spec(name)
        if len(spec.shape) != 2 or DTYPES[spec.dtype].kind != "float":
            kept.append(f"'{name}' is {spec}, no matrix of floats; it stays as it is")
        elif min(spec.shape) <= rank:
            kept.append(f"'{name}' is {spec}, whose rank is {rank} or less; it stays as it is")
        else:
            rows, columns = spec.shape
            least = min(rows, columns)
            # LAPACK's copy, the vectors, what is made of them, and the workspace of gesdd.
            spare = 2 * spec.count + least * (rows + columns) + 8 * least * least
            changes[name] = WholeTensor(
                spec,
                partial(_truncated, name, rank, energy),
                (draft[name],),
                spare_bytes=spare * _FLOAT64_BYTES,
                explain=partial(_too_large, name, spec.dtype),
            )
    if not changes and not draft.optional:
        raise PlanError(*(kept or [f"{target!r} selects no matrix"]))
    draft.notes += kept
    draft.replace(changes)


def _truncated(name: str, rank: int, energy: float | None, operands: Sequence[Array]) -> Array:
    (matrix,) = operands
    require_finite(matrix.reshape(-1), f"'{name}'")
    try:
        left, values, right = singular(matrix, rank)
    except np.linalg.LinAlgError:
        raise PlanError(f"'{name}': its singular values were not found") from None
    if energy is not None and (share := kept_share(matrix, right)) < energy:
        raise PlanError(
            f"'{name}': rank {rank} keeps {share:.4g} of its squared norm, less than {energy:g}"
        )
    return np.asarray((left * values) @ right)


def _too_large(name: str, dtype: str, values: Sequence[Array]) -> None:
    raise beyond(name, dtype)

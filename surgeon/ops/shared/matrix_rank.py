"""How many directions a matrix has."""

from __future__ import annotations

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.lazy import LazyTensor, Scratch, rounded
from surgeon.lazy.values import require_finite
from surgeon.lazy.whole_tensor import read_whole
from surgeon.numeric.blas import one_thread

# The distance from 1 to the next larger number.
_EPSILON = {
    "F64": 2.0**-52,
    "F32": 2.0**-23,
    "F16": 2.0**-10,
    "BF16": 2.0**-7,
    "F8_E4M3": 2.0**-3,
    "F8_E5M2": 2.0**-2,
}


def rank_of(name: str, tensor: LazyTensor, scratch: Scratch) -> int:
    """Return the numerical rank of a matrix, with the digits of its dtype.

    Raises PlanError where it holds NaN or Inf.
    """
    matrix = read_whole(rounded(tensor), scratch)
    require_finite(matrix.reshape(-1), f"'{name}'")
    if not matrix.size:
        return 0
    with one_thread():
        try:
            singular = np.linalg.svd(matrix, compute_uv=False)
        except np.linalg.LinAlgError:
            raise PlanError(f"'{name}': its singular values were not found") from None
    least = singular[0] * max(matrix.shape) * _EPSILON[tensor.spec.dtype]
    return int((singular > least).sum())

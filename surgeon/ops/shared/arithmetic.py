"""What the ops that calculate share: which tensors, and what is wrong with a result."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import numpy as np

from surgeon.base.errors import PlanError, listed
from surgeon.draft import Draft
from surgeon.lazy import Blockwise, CompiledForm, Kernel, LazyTensor, TensorSpec
from surgeon.lazy.values import beyond, require_finite
from surgeon.numeric.dtypes import DTYPES, Array

Integers = Annotated[
    Literal["keep", "error"], "keep: what is not floating-point stays as it is, and is reported"
]
NonFinite = Annotated[Literal["error", "allow"], "what to do with NaN and Inf"]

FLOAT64 = np.dtype(np.float64)


def floats(draft: Draft, names: Sequence[str], integers: Integers) -> list[str]:
    """Return those of the names that are floating-point; raises PlanError for others, or notes."""
    kept = [name for name in names if DTYPES[draft.spec(name).dtype].kind != "float"]
    if kept and integers == "error":
        raise PlanError(
            *(
                f"'{name}' is {draft.spec(name)}, not floating-point; "
                '"integers": "keep" leaves it as it is'
                for name in kept
            )
        )
    if kept:
        draft.notes.append(f"{listed(kept, 1)}: not floating-point; kept as is")
    left = set(kept)
    return [name for name in names if name not in left]


def calculated(
    name: str,
    spec: TensorSpec,
    kernel: Kernel,
    operands: tuple[LazyTensor, ...],
    nonfinite: NonFinite,
    compiled: CompiledForm | None = None,
) -> LazyTensor:
    """Return arithmetic on tensors: the named one, or what replaces it, first.

    It is in float64, and rounded once.
    """
    explain = partial(_explain, name, spec.dtype) if nonfinite == "error" else None
    return Blockwise(spec, kernel, operands, working=FLOAT64, explain=explain, compiled=compiled)


def _explain(name: str, dtype: str, blocks: Sequence[Array]) -> None:
    """Raise PlanError with what holds NaN or Inf, or with the overflow of the result."""
    require_finite(blocks[0], f"'{name}'")
    for block in blocks[1:]:
        require_finite(block, f"what is added to '{name}'")
    raise beyond(name, dtype)

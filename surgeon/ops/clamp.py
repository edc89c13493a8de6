"""clamp: values within limits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf
from typing import Annotated

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import StoredBlocks
from surgeon.numeric import compiled
from surgeon.numeric.dtypes import Array
from surgeon.ops.shared.arithmetic import Integers, NonFinite, calculated, floats


@op(group="values", example={"target": "encoder.0.weight", "min": -1, "max": 1})
def clamp(
    draft: Draft,
    *,
    target: Target,
    min_: Annotated[float | None, "the smallest value; default no limit"] = None,
    max_: Annotated[float | None, "the largest value; default no limit"] = None,
    integers: Integers = "keep",
    nonfinite: NonFinite = "error",
) -> None:
    """Bring values that lie outside of limits to the nearer one.

    A limit that the dtype does not have is rounded to nearest, as every value is. Infinities are
    clamped too; NaN, and an infinity on a side without a limit, is an error unless `nonfinite`
    lets it through. Raises where there is no limit, or the lower one is above the upper one.
    """
    if min_ is None and max_ is None:
        raise PlanError("'min', 'max' or both must be given")
    if min_ is not None and max_ is not None and min_ > max_:
        raise PlanError(f"min {min_:g} is above max {max_:g}")
    low, high = -inf if min_ is None else min_, inf if max_ is None else max_
    kernel, form = partial(_clamp, low, high), partial(_compiled, low, high)
    draft.replace(
        {
            name: calculated(name, draft.spec(name), kernel, (draft[name],), nonfinite, form)
            for name in floats(draft, draft.select(target), integers)
        }
    )


def _clamp(low: float, high: float, blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    # Not by minimum and maximum: which of two zeros these give depends on the processor.
    np.copyto(out, blocks[0])
    np.copyto(out, low, where=out < low)
    np.copyto(out, high, where=out > high)
    return out


def _compiled(
    low: float, high: float, blocks: StoredBlocks, statistics: None, dtype: str, out: Array
) -> bool:
    return compiled.clamped(blocks[0], low, high, dtype, out)

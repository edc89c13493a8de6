"""clamp: values within limits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
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
    kernel = partial(_clamp, min_, max_)
    draft.replace(
        {
            name: calculated(name, draft.spec(name), kernel, (draft[name],), nonfinite)
            for name in floats(draft, draft.select(target), integers)
        }
    )


def _clamp(
    low: float | None, high: float | None, blocks: Sequence[Array], statistics: None, out: Array
) -> Array:
    return np.clip(blocks[0], low, high, out=out)

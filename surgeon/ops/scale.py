"""scale: tensors times a number."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import numpy as np

from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy.forms import Linear
from surgeon.numeric.dtypes import Array
from surgeon.ops.shared.arithmetic import Integers, NonFinite, calculated, floats


@op(group="values", example={"target": "encoder.1.weight", "by": 0.5})
def scale(
    draft: Draft,
    *,
    target: Target,
    by: Annotated[float, "the factor"],
    integers: Integers = "keep",
    nonfinite: NonFinite = "error",
) -> None:
    """Multiply tensors by a number.

    Calculated in float64 and rounded once to the tensor's dtype. Raises, while writing, where a
    tensor holds NaN or Inf, or where a product is beyond the dtype's largest value.
    """
    kernel, compiled = partial(_multiply, by), Linear([by])
    draft.replace(
        {
            name: calculated(name, draft.spec(name), kernel, (draft[name],), nonfinite, compiled)
            for name in floats(draft, draft.select(target), integers)
        }
    )


def _multiply(by: float, blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    return np.multiply(blocks[0], by, out=out)

"""add: other tensors, times a number, onto tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import numpy as np

from surgeon.base.patterns import Destinations, Names
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy.forms import Linear
from surgeon.numeric.dtypes import Array
from surgeon.ops.shared.arithmetic import Integers, NonFinite, calculated
from surgeon.ops.shared.pairs import pairs


@op(group="values", example={"target": "encoder.0", "from": "encoder.1", "by": 0.5})
def add(
    draft: Draft,
    *,
    target: Names,
    from_: Destinations,
    model: Annotated[str | None, "the model to add from; default the state"] = None,
    by: Annotated[float, "the factor of what is added"] = 1.0,
    integers: Integers = "keep",
    nonfinite: NonFinite = "error",
) -> None:
    """Add other tensors, times a number, to tensors.

    `target` captures, `from` says the name of what is added to each: `{"target": "{name**}",
    "from": "{name}", "model": "delta"}` adds a whole model. Shapes are the same on both sides;
    floating-point dtypes may differ. Calculated in float64 and rounded once. Raises, while
    writing, where either holds NaN or Inf, or where a sum is beyond the dtype's largest value.
    """
    kernel = partial(_add, by)
    draft.replace(
        {
            name: calculated(name, ours.spec, kernel, (ours, theirs), nonfinite, Linear([1.0, by]))
            for name, ours, theirs in pairs(draft, target, from_, model, integers, done="added to")
        }
    )


def _add(by: float, blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    np.multiply(blocks[1], by, out=out)
    return np.add(blocks[0], out, out=out)

"""channels: a first convolution for another number of input channels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import numpy as np

from surgeon.base.errors import PlanError
from surgeon.base.indices import runs
from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import Blockwise, LazyTensor, Selected
from surgeon.numeric.dtypes import DTYPES, Array
from surgeon.ops.shared.modules import layers

_FLOAT64 = np.dtype(np.float64)


@op(group="size", example={"target": "stem", "to": 3})
def channels(
    draft: Draft,
    *,
    target: Target,
    to: Annotated[int, "input channels to have", {"minimum": 1, "maximum": 100_000}],
) -> None:
    """Change a first convolution's input channels, keeping its response.

    Of a weight (outputs, C, ...) of rank 3 to 5 with `to` = n: for n = 1 the sum over channels;
    else channel c is the old channel c mod C times C / n. An image whose channels are all equal
    then gets the response that it got, for n = C k or 1 from any weight, else as far as its
    channels are alike. So 3 -> 1 adds up, 1 -> 3 gives each a third, 3 -> 4 repeats the first and
    takes 3 / 4 of each. Computed in float64 and rounded once; the bias stays. Source:
    adapt_input_conv in timm (models/_manipulate.py), which has C = 3. To keep trained channels bit
    for bit, `widen` columns instead. Raises where there are n channels already, and while writing
    where a result does not fit into the dtype.
    """
    changes: dict[str, LazyTensor] = {}
    problems: list[str] = []
    for layer in layers(draft, target):
        weights = [name for name in layer.names if 3 <= len(draft.spec(name).shape) <= 5]
        if not weights:
            name = layer.names[0]
            problems.append(f"'{name}' is {draft.spec(name)}, which is no convolution's weight")
        for name in weights:
            spec = draft.spec(name)
            if DTYPES[spec.dtype].kind != "float" or not spec.shape[1]:
                problems.append(f"'{name}' is {spec}, which has no channels to compute with")
            elif spec.shape[1] == to:
                problems.append(f"'{name}' is {spec}: it has {to} input channels already")
            else:
                changes[name] = _adapt(name, draft[name], to)
    if problems:
        raise PlanError(*problems)
    draft.replace(changes)


def _adapt(name: str, weight: LazyTensor, to: int) -> LazyTensor:
    count = weight.spec.shape[1]
    spec, explain = weight.spec.resized(1, to), partial(_explain, name)
    if to == 1:
        each = tuple(Selected(weight, 1, ((c, c + 1),)) for c in range(count))
        return Blockwise(spec, _sum, each, working=_FLOAT64, explain=explain)
    repeated = Selected(weight, 1, runs(c % count for c in range(to)))
    kernel = partial(_share, count, to)
    return Blockwise(spec, kernel, (repeated,), working=_FLOAT64, explain=explain)


def _sum(blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    np.copyto(out, blocks[0])
    for block in blocks[1:]:
        np.add(out, block, out=out)
    return out


def _share(count: int, to: int, blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    np.multiply(blocks[0], count, out=out)
    return np.divide(out, to, out=out)


def _explain(name: str, blocks: Sequence[Array]) -> None:
    if not all(np.isfinite(block).all() for block in blocks):
        raise PlanError(f"'{name}' holds NaN or Inf, from which no channels can be made")
    raise PlanError(f"'{name}' cannot have other channels: its dtype cannot hold the result")

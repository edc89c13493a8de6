"""add: other tensors, times a number, onto tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import numpy as np

from surgeon.base.errors import Hints, PlanError
from surgeon.base.patterns import Destinations, Names
from surgeon.draft import Draft, Tensors
from surgeon.draft.registry import op
from surgeon.lazy import LazyTensor
from surgeon.lazy.forms import Linear
from surgeon.numeric.dtypes import DTYPES, Array
from surgeon.ops.shared.arithmetic import Integers, NonFinite, calculated, floats
from surgeon.ops.shared.moves import destinations


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
    others = draft.tensors if model is None else draft.model(model)
    where = "the state" if model is None else f"model '{model}'"
    moves = dict(destinations(draft, target, from_))
    problems: list[str] = []
    hint = Hints(others)
    changes: dict[int, tuple[LazyTensor, str]] = {}
    replaced: dict[str, LazyTensor] = {}
    for name in floats(draft, list(moves), integers):
        source = moves[name]
        if problem := _problem(draft, name, source, others, where, hint):
            problems.append(problem)
            continue
        ours, theirs = draft[name], others[source]
        added, first = changes.setdefault(id(ours), (theirs, name))
        if added is not theirs:
            problems.append(f"'{name}' is tied to '{first}', and both would be added to; untie it")
        elif first == name:
            kernel = partial(_add, by)
            replaced[name] = calculated(
                name, ours.spec, kernel, (ours, theirs), nonfinite, Linear([1.0, by])
            )
    if problems:
        raise PlanError(*problems)
    draft.replace(replaced)


def _problem(
    draft: Draft, name: str, source: str, others: Tensors, where: str, hint: Hints
) -> str | None:
    """Say why a tensor cannot be added to another."""
    if source not in others:
        return f"there is no '{source}' in {where} to add to '{name}'{hint(source)}"
    ours, theirs = draft.spec(name), others[source].spec
    if ours.shape != theirs.shape or DTYPES[theirs.dtype].kind != "float":
        return f"'{name}' is {ours} but '{source}' in {where} is {theirs}"
    return None


def _add(by: float, blocks: Sequence[Array], statistics: None, out: Array) -> Array:
    np.multiply(blocks[1], by, out=out)
    return np.add(blocks[0], out, out=out)

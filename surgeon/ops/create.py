"""create: tensors that were not there."""

from __future__ import annotations

from typing import Annotated

from surgeon.base import patterns
from surgeon.base.errors import PlanError
from surgeon.base.patterns import Destination
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.initialisers import Init, fresh
from surgeon.lazy import TensorSpec
from surgeon.numeric.dtypes import require_dtype
from surgeon.ops.shared.moves import destinations, require_distinct


@op(
    group="structure",
    example={"name": "gate.weight", "shape": [1, 8], "dtype": "BF16", "init": "zeros"},
    exactly_one=("shape", "like"),
)
def create(
    draft: Draft,
    *,
    name: Annotated[Destination, "the new name; may use what `like` captures"],
    shape: Annotated[
        list[int] | None,
        "the shape; [] for a single number",
        {"items": {"type": "integer", "minimum": 0}},
    ] = None,
    like: Annotated[
        str | None,
        "a tensor, module or pattern: for each tensor a new one of the same shape",
        {"minLength": 1, "format": "name-pattern"},
    ] = None,
    dtype: Annotated[str | None, "the dtype; default that of `like`", {"format": "dtype"}] = None,
    init: Init = "default",
) -> None:
    """Make tensors of a given shape, or of the shapes of others.

    All of them counts as new. `{"name": "h.{i}.gate", "like": "h.{i}.norm.weight", "init": "ones"}`
    makes one for each layer. Raises where a name is taken, and where a shape comes without a dtype.
    """
    specs: dict[str, TensorSpec] = {}
    if shape is not None:
        if dtype is None:
            raise PlanError("'dtype' must be given with 'shape'")
        if captures := patterns.used(name):
            raise PlanError(f"'{name}': without 'like' nothing is captured as {{{captures[0]}}}")
        specs[name] = TensorSpec(require_dtype(dtype), tuple(shape))
    elif like is not None:
        moves = list(destinations(draft, like, name))
        require_distinct(moves)
        for old, new in moves:
            spec = draft.spec(old)
            specs[new] = TensorSpec(require_dtype(dtype or spec.dtype), spec.shape)
    if taken := [new for new in specs if new in draft.tensors]:
        raise PlanError(*(f"there is a tensor '{new}' already" for new in taken))
    known = {**{old: tensor.spec for old, tensor in draft.tensors.items()}, **specs}
    draft.tensors |= {
        new: fresh(
            spec, init, draft.stream(new), name=new.rpartition(".")[2],
            weight=known.get(f"{new.rpartition('.')[0]}.weight"),
        )
        for new, spec in specs.items()
    }  # fmt: skip

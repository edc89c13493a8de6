"""widen: append rows or columns to a layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from surgeon.draft import Draft
from surgeon.errors import PlanError
from surgeon.initialisers import BiasInit, Init, for_sibling, grown
from surgeon.layers import Layer, directly_in, layers, weight_of
from surgeon.lazy import LazyTensor
from surgeon.patterns import Target
from surgeon.registry import op


@op(
    group="size",
    example={"target": "classifier", "rows": 1},
    exactly_one=("rows", "columns", "to"),
)
def widen(
    draft: Draft,
    *,
    target: Target,
    rows: Annotated[int | None, "rows to append (dimension 0, outputs)", {"minimum": 1}] = None,
    columns: Annotated[int | None, "columns to append (dimension 1)", {"minimum": 1}] = None,
    to: Annotated[int | None, "rows to have in the end", {"minimum": 1}] = None,
    init: Init = "default",
    bias_init: BiasInit = None,
) -> None:
    """Append rows or columns to a layer; what is trained keeps its bits.

    A module grows whole: its weight, its bias and every tensor directly in it that has one entry
    per row. A tensor named by itself grows alone. New values take the old ones' dtype; tied names
    grow together. Raises where `to` is not more than there is.
    """
    dim = 0 if columns is None else 1
    changes: dict[str, LazyTensor] = {}
    shared = draft.shared()
    for layer in layers(draft, target):
        grow, size = _growing(draft, layer, dim)
        count = rows or columns or (to or 0) - size
        if count < 1:
            raise PlanError(f"'{layer.module or grow[0]}' has {size} rows already, not under {to}")
        for name in _with_tied_layers(draft, grow, shared, dim, size):
            weight = weight_of(draft, name.rpartition(".")[0])
            if weight is not None and len(weight.shape) > dim and weight.shape[dim] == size:
                weight = weight.resized(dim, size + count)
            leaf = name.rpartition(".")[2]
            chosen = for_sibling(init, bias_init, name=leaf) if layer.is_module else init
            changes[name] = grown(
                draft[name], dim, count, chosen, draft.stream(name), name=leaf, weight=weight
            )
    draft.replace(changes)


def _growing(draft: Draft, layer: Layer, dim: int) -> tuple[list[str], int]:
    """Return the tensors of a layer that have the dimension that grows, and its size."""
    sizes = {
        name: draft.spec(name).shape[dim]
        for name in layer.names
        if len(draft.spec(name).shape) > dim
    }
    if not sizes:
        what = "rows" if dim == 0 else "columns"
        raise PlanError(f"'{layer.names[0]}' has no {what}: it is {draft.spec(layer.names[0])}")
    weight = weight_of(draft, layer.module) if layer.is_module else None
    size = weight.shape[dim] if weight and len(weight.shape) > dim else next(iter(sizes.values()))
    return [name for name in sizes if sizes[name] == size], size


def _with_tied_layers(
    draft: Draft, names: list[str], shared: set[str], dim: int, size: int
) -> Iterator[str]:
    """Yield each tensor that grows once: also the rest of layers whose weight is tied to one."""
    seen: set[int] = set()
    for name in names:
        growing = [name]
        for tied in draft.tied(name) if name in shared else []:
            siblings = directly_in(draft, tied.rpartition(".")[0]) if dim == 0 else []
            along = [other for other in siblings if draft.spec(other).shape[:1] == (size,)]
            growing += [] if tied == name else [tied, *along]
        for other in growing:
            if id(draft[other]) not in seen:
                seen.add(id(draft[other]))
                yield other

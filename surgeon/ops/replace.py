"""replace: a fresh layer of a new size."""

from __future__ import annotations

from typing import Annotated

from surgeon.base.errors import PlanError
from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.initialisers import BiasInit, Init, for_sibling, fresh
from surgeon.lazy import LazyTensor, TensorSpec
from surgeon.ops.shared.modules import layers, weight_of


@op(group="size", example={"target": "classifier", "rows": 5})
def replace(
    draft: Draft,
    *,
    target: Target,
    rows: Annotated[int, "rows (outputs) of the new layer", {"minimum": 1}],
    columns: Annotated[int | None, "columns (inputs); default as before", {"minimum": 1}] = None,
    init: Init = "default",
    bias_init: BiasInit = None,
) -> None:
    """Put a fresh layer of a new size in a layer's place.

    Nothing trained is kept. All tensors directly in the module are made anew: those with one entry
    per row get `rows` of them. Raises for a tied tensor, since the other name would lose its values
    too: untie it first.
    """
    changes: dict[str, LazyTensor] = {}
    shared = draft.shared()
    heads = {owner: head for head, owner in draft.tied_by_config().items()}
    for layer in layers(draft, target):
        old = weight_of(draft, layer.module) if layer.is_module else draft.spec(layer.names[0])
        weight = _resize(old, old, rows, columns) if old else None
        for name in layer.names:
            others = [n for n in draft.tied(name) if n not in layer.names] if name in shared else []
            others += [heads[name]] if name in heads else []
            if others:
                raise PlanError(f"'{name}' is tied to '{others[0]}'; untie it first")
            spec = _resize(draft.spec(name), old or draft.spec(name), rows, columns)
            leaf = layer.leaf(name)
            chosen = for_sibling(init, bias_init, name=leaf) if layer.is_module else init
            changes[name] = fresh(spec, chosen, draft.stream(name), name=leaf, weight=weight)
    draft.replace(changes)


def _resize(spec: TensorSpec, weight: TensorSpec, rows: int, columns: int | None) -> TensorSpec:
    """Return a spec with new rows, and new columns, where it has the weight's number of them."""
    if spec.shape[:1] and spec.shape[0] == weight.shape[0]:
        if columns is not None and len(spec.shape) > 1 and spec.shape[1] == weight.shape[1]:
            spec = spec.resized(1, columns)
        spec = spec.resized(0, rows)
    return spec

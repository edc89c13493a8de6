"""narrow: keep some of a layer's rows, and what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from surgeon.base.errors import PlanError
from surgeon.base.indices import SCHEMA, Indices, Ranges, chosen, runs
from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import LazyTensor, Selected
from surgeon.ops.shared.consumers import (
    Consumer,
    ConsumersSchema,
    OutputDim,
    Outputs,
    outputs,
    readers,
    require_one_size,
    with_tied_layers,
)
from surgeon.ops.shared.fused import require_same_heads
from surgeon.ops.shared.importance import Kept, kept_by
from surgeon.ops.shared.parametrised import require_whole


@op(
    group="size",
    example={
        "target": ["encoder.0", "encoder.0.norm"],
        "drop": [1, "4:6"],
        "consumers": ["encoder.1"],
    },
    exactly_one=("keep", "drop"),
)
def narrow(
    draft: Draft,
    *,
    target: Target,
    keep: Annotated[
        Indices | None,
        'what to keep, in this order: 3, "0:5", [1, 2, "7:9"]; with `by`, how many',
        SCHEMA,
    ] = None,
    drop: Annotated[Indices | None, "what to drop; the rest keeps its order", SCHEMA] = None,
    by: Annotated[
        str | None,
        "a file of surgeon.training.collect_importance: the most important are kept",
        {"minLength": 1},
    ] = None,
    block: Annotated[int, "rows for each index, such as a head's size", {"minimum": 1}] = 1,
    parts: Annotated[
        int, "equal parts to choose the same of, such as 3 for fused q, k, v", {"minimum": 1}
    ] = 1,
    dim: OutputDim = 0,
    consumers: Annotated[
        str | list[Consumer] | None,
        ConsumersSchema("columns for each index (default: the step's block)", {}),
    ] = None,
    shared: Annotated[
        dict[str, Any] | None,
        "what `by` indices share, such as the key and value heads of query heads; goes with them",
        {
            "properties": {
                "target": {"type": ["string", "array"], "items": {"type": "string"}},
                "by": {"type": "integer", "minimum": 1},
            },
            "required": ["target", "by"],
            "additionalProperties": False,
        },
    ] = None,
) -> None:
    """Keep some of a layer's rows by index and range; consumers follow.

    A module narrows whole: its weight, its bias and every tensor directly in it that has one entry
    per row. A tensor named by itself narrows alone; tied names narrow together. An index means a
    row, or `block` rows where they form heads. `consumers` read what narrows, and keep the columns
    of what is kept.

    Heads of a fused projection whose rows are q, then k, then v: `"parts": 3` and the head's size
    as `block`. Where each head has its own q, k and v (GPT-NeoX), `block` is three heads' sizes,
    and the consumer's is one. Where the channels are flattened between a convolution and a linear
    layer, the consumer's `block` is the number of positions. What is kept keeps its bits.

    Query heads that share keys and values: `"shared": {"target": "**.(k|v)_proj", "by": 4}`, where
    four heads share one, has those go along whose heads all go, and refuses what would pair the
    others anew.

    With `by` the highest scores are kept in their order: of heads and neurons those of the layer
    that reads them, so that each layer of a pattern keeps its own; of channels, which many layers
    read, the same everywhere. Of heads that share keys, whole groups are kept with their keys where
    `keep` is a multiple of `shared.by`, and else as many of each group.
    """
    found = outputs(draft, target, dim)
    if by is not None and drop is not None:
        raise PlanError("'by' says what to keep; 'drop' has no part in it")
    problems: list[str] = []
    kept: list[list[int]] = []
    for layer in found:
        units, rest = divmod(layer.size, parts * block)
        if rest:
            divisor = f"{parts} x {block}" if parts > 1 else str(block)
            problems.append(
                f"'{layer.label}' has {layer.size} outputs, not a multiple of {divisor}"
            )
            continue
        try:
            kept.append(_kept(keep, drop, units) if by is None else [])
        except PlanError as error:
            problems += [f"'{layer.label}': {line}" for line in error.problems]
    if problems:
        raise PlanError(*problems)
    changes: dict[str, LazyTensor] = {}
    tied = draft.shared()
    reading = []
    if consumers is not None and found:
        units = require_one_size(found) // (parts * block)
        reading = readers(draft, consumers, units, block)
    if by is not None and found:
        units = require_one_size(found) // (parts * block)
        modules = (reader.name.rpartition(".")[0] for reader in reading)
        chosen_by = kept_by(draft, by, keep, units, modules, shared["by"] if shared else None)
        kept = [chosen_by.of(layer.layer.module) for layer in found]
    else:
        chosen_by = Kept({"": kept[0] if kept else []})
    for layer, indices in zip(found, kept, strict=True):
        ranges = _in_each_part(indices, layer, parts, block)
        for name, own_dim in with_tied_layers(draft, layer, dim, tied):
            require_same_heads(draft, name, own_dim, ranges)
            changes[name] = Selected(draft[name], own_dim, ranges)
    require_whole(draft, changes, [reader.name for reader in reading], has_zeros=False)
    draft.replace(changes)
    if shared is not None and shared["target"] and kept:
        if by is None and any(other != kept[0] for other in kept):
            raise PlanError("what shares by groups keeps the same of each layer of the target")
        _narrow_shared(draft, shared["target"], shared["by"], chosen_by, block)
    draft.replace(
        {
            reader.name: Selected(
                draft[reader.name],
                reader.dim,
                runs(chosen_by.of(reader.name.rpartition(".")[0]), reader.block),
            )
            for reader in reading
        }
    )


def _narrow_shared(draft: Draft, target: str | list[str], by: int, kept: Kept, block: int) -> None:
    """Keep what is shared by indices that are kept, such as key heads by query heads."""
    changes: dict[str, LazyTensor] = {}
    for layer in outputs(draft, target, 0):
        left = _groups_left(kept.of(layer.layer.module), by)
        if layer.size % block or max(left) >= layer.size // block:
            raise PlanError(
                f"'{layer.label}' has {layer.size} outputs, not {block} for each group of {by}"
            )
        for name, own_dim in with_tied_layers(draft, layer, 0, draft.shared()):
            changes[name] = Selected(draft[name], own_dim, runs(left, block))
    draft.replace(changes)


def _groups_left(indices: Sequence[int], by: int) -> list[int]:
    """Return the groups that are left; raises PlanError where others would share them."""
    groups = [index // by for index in indices]
    left = list(dict.fromkeys(groups))
    if groups != [group for group in left for _ in range(len(groups) // len(left))]:
        counts = ", ".join(f"{groups.count(group)} of group {group}" for group in left)
        raise PlanError(
            f"what is shared by {by} would be shared by others: {counts} are kept; keep as many of "
            "each, or all or none of one"
        )
    return left


def _kept(keep: Indices | None, drop: Indices | None, units: int) -> list[int]:
    """Return the indices that are kept, in order; raises PlanError where there are none."""
    if keep is not None:
        return chosen(keep, units)
    dropped = set(chosen(drop if drop is not None else [], units))
    if len(dropped) == units:
        raise PlanError(f"all {units} would be dropped")
    return [index for index in range(units) if index not in dropped]


def _in_each_part(indices: list[int], layer: Outputs, parts: int, block: int) -> Ranges:
    units = layer.size // (parts * block)
    return runs([part * units + index for part in range(parts) for index in indices], block)

"""transpose: rows for columns."""

from __future__ import annotations

from surgeon.base.errors import PlanError
from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import LazyTensor, Rearranged
from surgeon.ops.shared.grouping import require_bytes
from surgeon.ops.shared.modules import layers


@op(group="structure", example={"target": "classifier"})
def transpose(draft: Draft, *, target: Target) -> None:
    """Exchange the last two dimensions of tensors.

    Turns the (in, out) weights of GPT-2's Conv1D into the (out, in) of linear layers. Of a module,
    tensors of fewer than two dimensions, such as its bias, stay as they are; one that is named
    itself must have two.
    """
    changes: dict[str, LazyTensor] = {}
    problems: list[str] = []
    for layer in layers(draft, target):
        for name in layer.names:
            spec = draft.spec(name)
            rank = len(spec.shape)
            if rank < 2:
                if not layer.is_module:
                    problems.append(f"'{name}' is {spec}, and has no two dimensions to exchange")
                continue
            require_bytes(name, spec)
            order = (*range(rank - 2), rank - 1, rank - 2)
            shape = tuple(spec.shape[dim] for dim in order)
            changes[name] = Rearranged(draft[name], order, shape)
        if layer.is_module and not changes.keys() & set(layer.names):
            problems.append(f"'{layer.module}' has no tensor with two dimensions to exchange")
    if problems:
        raise PlanError(*problems)
    draft.replace(changes)

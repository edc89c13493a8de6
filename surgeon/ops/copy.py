"""copy: tensors under a second name, from here or from another model."""

from __future__ import annotations

from typing import Annotated

from surgeon.base.patterns import Destinations, Names
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import Copied, LazyTensor
from surgeon.ops.shared.moves import destinations, require_distinct


@op(group="structure", example={"from": "classifier", "to": "auxiliary"})
def copy(
    draft: Draft,
    *,
    from_: Names,
    to: Destinations,
    model: Annotated[str | None, "the model to copy from; default the state"] = None,
) -> None:
    """Copy tensors to new names, from the state or from another model.

    Copies are tensors of their own (`tie` makes two names share one), tied to each other where
    their sources are. Raises, listing both, where a name is taken.
    """
    source = draft.tensors if model is None else draft.model(model)
    moves = list(destinations(draft, from_, to, source))
    require_distinct([*((name, name) for name in draft.tensors), *moves])
    copies: dict[int, LazyTensor] = {}
    for name, destination in moves:
        tensor = source[name]
        draft.tensors[destination] = copies.setdefault(id(tensor), Copied(tensor))

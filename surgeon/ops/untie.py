"""untie: give a name a tensor of its own again."""

from __future__ import annotations

from collections import Counter

from surgeon.base.errors import PlanError, listed
from surgeon.base.patterns import Target
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.lazy import detached


@op(group="structure", example={"target": "head.weight"})
def untie(draft: Draft, *, target: Target) -> None:
    """Give tied names a copy of their own.

    Of a model folder also those that are not stored, since the config ties them: an output layer
    to the embedding, say. One setting ties them all, so all are stored then, and the config says
    so. Raises for a tensor that is not tied, unless the step is optional.
    """
    tied = draft.tied_by_config()
    draft.tensors |= {name: draft[owner] for name, owner in tied.items()}
    shared = Counter(map(id, draft.tensors.values()))
    chosen = draft.select(target)
    is_parted = not {*tied, *tied.values()}.isdisjoint(chosen)
    more = [name for name in tied if is_parted and name not in chosen]
    if more:
        draft.notes.append(f"{listed(more)} is stored too: one setting of the config ties them")
    for name in (*chosen, *more):
        if shared[id(draft[name])] > 1:
            draft.tensors[name] = detached(draft[name])
        elif not draft.optional:
            raise PlanError(f"'{name}' is not tied to another tensor")
    if not is_parted:
        draft.tensors = {name: some for name, some in draft.tensors.items() if name not in tied}

"""tie: two names, one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Literal

from surgeon.base.errors import PlanError, listed
from surgeon.base.lists import as_list
from surgeon.base.patterns import Destination, Names
from surgeon.draft import Draft, Tensors
from surgeon.draft.registry import op
from surgeon.lazy import LazyTensor, Scratch
from surgeon.lazy.values import same_values
from surgeon.ops.shared.moves import destinations


@op(
    group="structure",
    example={"target": "encoder.1.weight", "to": "encoder.0.weight", "when": "always"},
)
def tie(
    draft: Draft,
    *,
    target: Names,
    to: Destination,
    when: Annotated[
        Literal["equal", "always"], "equal: an error where the values differ"
    ] = "equal",
) -> None:
    """Bind names to the tensor of another name.

    They are then stored and trained as one, under the name that they are tied to; a module's
    tensors with those of the same names in the other. Raises where the specs differ, and with
    `equal` (before anything is written) where the values do.
    """
    targets = as_list(target)
    moves = list(destinations(draft, targets, [to] * len(targets)))
    if not moves:  # which only an optional step gets as far as
        draft.notes.append(
            f"{listed(targets)} is not stored, so nothing is tied to '{to}'; where it is tied "
            "already, one name is in the file, and the model's class ties the other to it"
        )
    for name, owner in moves:
        if owner not in draft.tensors:
            draft.select(owner)  # says so, with the nearest names
            raise PlanError(f"'{owner}' is a module; tie '{name}' to a tensor")
        ours, theirs = draft[name], draft[owner]
        if ours.spec != theirs.spec:
            raise PlanError(f"'{name}' is {ours.spec} but '{owner}' is {theirs.spec}")
        if when == "equal":
            draft.check(partial(_require_equal, name, owner, ours, theirs))
        draft.tensors[name] = theirs
    draft.tensors = _behind(draft.tensors, dict(moves))


def _behind(tensors: Tensors, owners: Mapping[str, str]) -> Tensors:
    """Return tensors with each name after its owner, which is stored since it comes first."""
    places = {name: place for place, name in enumerate(tensors)}
    early: dict[str, list[str]] = {}
    for name, owner in owners.items():
        if places[name] < places[owner]:
            early.setdefault(owner, []).append(name)
    moved = {name for names in early.values() for name in names}
    ordered: Tensors = {}
    pending = [name for name in reversed(tensors) if name not in moved]
    while pending:
        name = pending.pop()
        ordered[name] = tensors[name]
        pending += reversed(early.get(name, []))
    return ordered


def _require_equal(
    name: str, owner: str, ours: LazyTensor, theirs: LazyTensor, scratch: Scratch
) -> None:
    if not same_values(ours, theirs, scratch):
        raise PlanError(
            f"'{name}' and '{owner}' differ; \"when\": \"always\" ties them all the same"
        )

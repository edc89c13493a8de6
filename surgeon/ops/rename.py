"""rename: other names for the same tensors."""

from __future__ import annotations

from surgeon.base.patterns import Destinations, Names
from surgeon.draft import Draft
from surgeon.draft.registry import op
from surgeon.ops.shared.moves import destinations, require_distinct


@op(group="structure", example={"from": "encoder.{rest**}", "to": "backbone.{rest}"})
def rename(
    draft: Draft,
    *,
    from_: Names,
    to: Destinations,
) -> None:
    """Rename tensors and modules.

    All moves of a step happen at once, so two lists may swap names. Raises, listing both sources,
    where two tensors would have one name.
    """
    moves = dict(destinations(draft, from_, to))
    renamed = {moves.get(name, name): tensor for name, tensor in draft.tensors.items()}
    if len(renamed) < len(draft.tensors):
        stay = [(name, name) for name in draft.tensors if name not in moves]
        require_distinct([*stay, *moves.items()])
    draft.tensors = renamed

"""What ops hold projections to that hold queries, keys and values, where their class is known."""

from __future__ import annotations

from collections.abc import Sequence

from surgeon.base.errors import PlanError, listed
from surgeon.base.indices import Ranges
from surgeon.draft import Draft
from surgeon.draft.fused import FusedHeads


def require_same_heads(draft: Draft, name: str, dim: int, ranges: Ranges) -> None:
    """Raise PlanError where rows that are kept would be read as others than they are."""
    found = _fused(draft, name, dim)
    if found is not None and not found.is_kept(ranges):
        hint = (
            f"each head has {len(found.order)} x {found.size} rows of its own: take such blocks"
            if found.groups is None and found.keys == found.queries
            else "keep the same heads of each, and as many queries for each of the keys"
        )
        raise PlanError(
            f"'{name}' of a {found.model_type} holds {found}; what is kept would be read as other "
            f"heads; {hint}"
        )


def require_unmixed(draft: Draft, name: str, dim: int, parts: Sequence[Ranges]) -> None:
    """Raise PlanError where a split into as many parts as there are would mix them."""
    found = _fused(draft, name, dim)
    if found is None or len(parts) != len(found.order):
        return
    held = [found.parts_in(ranges) for ranges in parts]
    if any(len(names) > 1 for names in held):
        groups = found.keys if found.groups is None else found.groups
        mixed = next(names for names in held if len(names) > 1)
        raise PlanError(
            f"'{name}' of a {found.model_type} holds {found}; a part would hold {listed(mixed)}; "
            f'say "groups": {groups}, and the parts\' own sizes'
        )
    if found.order not in ("qkv", "kv"):
        draft.notes.append(f"'{name}' of a {found.model_type} holds {found}: so are its parts")


def _fused(draft: Draft, name: str, dim: int) -> FusedHeads | None:
    found = draft.outside.fused_heads(name)
    shape = draft.spec(name).shape
    is_whole = found is not None and found.dim == dim and (
        shape[dim] == len(found.heads) * found.size
    )  # fmt: skip
    return found if is_whole else None

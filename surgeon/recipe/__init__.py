"""JSON to Recipe, with all errors at once; a Recipe's steps to a Plan, with its lineage.

No tensor data is read and nothing is written.
"""

from surgeon.draft.registry import OPS
from surgeon.recipe.recipe import (
    Recipe,
    RecipeLike,
    Written,
    fill_in,
    find,
    load,
    read_json,
    ready_made,
    written,
)

__all__ = [
    "OPS",
    "Recipe",
    "RecipeLike",
    "Written",
    "fill_in",
    "find",
    "load",
    "read_json",
    "ready_made",
    "written",
]

"""JSON to Recipe, with all errors at once; a Recipe's steps to a Plan, with its lineage.

No tensor data is read and nothing is written.
"""

from surgeon.base.ready_made import find, read_json, ready_made
from surgeon.draft.registry import OPS
from surgeon.recipe.recipe import Recipe, RecipeLike, Written, fill_in, load, written

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

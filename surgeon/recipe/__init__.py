"""JSON to Recipe, with all errors at once; a Recipe's steps to a Plan, with its lineage.

No tensor data is read and nothing is written.
"""

from surgeon.draft.registry import OPS
from surgeon.recipe.recipe import Recipe, RecipeLike, find, load, read_json, ready_made

__all__ = ["OPS", "Recipe", "RecipeLike", "find", "load", "read_json", "ready_made"]

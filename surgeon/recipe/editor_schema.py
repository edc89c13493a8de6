"""The JSON Schema of recipes, for editors and other programs."""

from __future__ import annotations

import surgeon.merges
import surgeon.ops  # noqa: F401  (importing the packages registers the ops)
from surgeon.base.schema import DRAFT
from surgeon.draft.registry import OPS, Op
from surgeon.recipe.frame import RECIPE_SCHEMA, Schema

# Where variables are filled in; see recipe.py.
_FILLED = ("models", "seed", "training", "output")
_VARIABLE: Schema = {
    "type": "string",
    "pattern": r"\$\{[A-Za-z_]\w*\}",
    "description": "a variable, or text with variables in it",
}


def recipe_schema() -> Schema:
    """Return the schema of recipes as they are written, with variables in them."""
    properties = dict(RECIPE_SCHEMA["properties"])
    properties |= {part: _open(properties[part]) for part in _FILLED}
    step: Schema = {
        "type": "object",
        "properties": {"op": _open({"enum": list(OPS), "description": "the operation"})},
        "required": ["op"],
        "allOf": [_when(op) for op in OPS.values()],
    }
    properties["steps"] = _or_variable({**properties["steps"], "items": _or_variable(step)})
    return {
        "$schema": DRAFT,
        "title": "surgeon recipe",
        **RECIPE_SCHEMA,
        "properties": properties,
        "$defs": {"variable": _VARIABLE},
    }


def _when(op: Op) -> Schema:
    """Return what holds for steps of one op; not one big oneOf, whose errors nobody can read."""
    return {
        "if": {"properties": {"op": {"const": op.name}}, "required": ["op"]},
        "then": _inside({**op.step_schema, "description": op.summary}),
    }


def _or_variable(schema: Schema) -> Schema:
    """Return a schema that also allows a variable in place of the value.

    An anyOf would do too, but then an error deep in a step is one about all steps.
    """
    said: Schema = {key: schema[key] for key in ("description", "default") if key in schema}
    # Editors look for values to offer in the first schema of a place, not in what it branches into.
    if words := [word for branch in schema.get("allOf", ()) for word in _words(branch)]:
        said["examples"] = words
    return {**said, "if": {"$ref": "#/$defs/variable"}, "else": schema}


def _words(branch: Schema) -> list[str]:
    found: list[str] = branch.get("then", {}).get("enum", [])
    return found


def _open(schema: Schema) -> Schema:
    return _or_variable(_inside(schema))


def _inside(schema: Schema) -> Schema:
    """Return a schema that allows a variable in place of every value inside of its own."""
    opened: Schema = {}
    for key, value in schema.items():
        match key, value:
            case "properties", dict():
                opened[key] = {name: _open(inner) for name, inner in value.items()}
            case (("items" | "additionalProperties"), dict()):
                opened[key] = _open(value)
            case (("anyOf" | "oneOf" | "allOf"), list()):
                opened[key] = [_inside(branch) for branch in value]
            case (("then" | "else"), dict()):
                opened[key] = _inside(value)
            case _:
                opened[key] = value
    return opened

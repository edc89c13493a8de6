"""The JSON Schemas of what commands print with --json, each with its version in its name.

Keys are added within a version; what stands here keeps its meaning. A document of an object says in
`$schema` by which of these it is to be read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from surgeon.base.documents import schema_of
from surgeon.base.errors import UsageError, did_you_mean
from surgeon.base.schema import DRAFT, Schema

_TEXT: Schema = {"type": "string"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": ["number", "null"]}
_YES: Schema = {"type": "boolean"}
_ANY: Schema = {}
_ANY_OBJECT: Schema = {"type": "object"}


def _object(optional: dict[str, Schema] | None = None, **properties: Schema) -> Schema:
    """Return the schema of an object with these keys; later versions may add some."""
    return {
        "type": "object",
        "properties": {**properties, **(optional or {})},
        "required": list(properties),
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _by_name(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


_SPEC = _object(dtype=_TEXT, shape=_list(_COUNT))
_STEPS = _list(
    _object({"into": _TEXT}, step=_TEXT, op=_TEXT, added=_TEXTS, changed=_TEXTS, removed=_TEXTS,
            notes=_TEXTS)
)  # fmt: skip
_FILES = _list(_object({"header_sha256": _TEXT}, file=_TEXT, bytes=_COUNT))
_STATE: Schema = {"type": ["object", "null"]}
_FIGURES = _object(
    {"cosines": _list(_list(_NUMBER)), "sign_conflicts": _NUMBER, "nonfinite": _COUNT},
    elements=_COUNT, norm=_NUMBER, relative_change=_list(_NUMBER), cosine=_NUMBER,
)  # fmt: skip
_TEXT_OR_NONE: Schema = {"type": ["string", "null"]}
_ERRORS = _list(_object(file=_TEXT_OR_NONE, place=_TEXT_OR_NONE, message=_TEXT, hint=_TEXT_OR_NONE))
_PARAMETERS: Schema = {"type": "object", "description": "a JSON Schema"}


def _plan() -> Schema:
    from surgeon.manifest.model import Change, Stage

    tensor = _object(dtype=_TEXT, shape=_list(_COUNT), lineage=_list(schema_of(Change)))
    recipe = _object(file=_TEXT, sha256=_TEXT, about=_TEXT, vars=_ANY_OBJECT, seed=_COUNT)
    return _object(
        {"before": _by_name(_SPEC), "inputs": _by_name(_object(file=_TEXT, bytes=_COUNT))},
        recipe=recipe, steps=_STEPS, tensors=_by_name(tensor), ties=_by_name(_TEXT),
        dropped=_ANY, files=_FILES, checks=_TEXTS, optimizer=_STATE, optimizer_state=_STATE,
        config=_ANY, carried=_TEXTS, teacher=_STATE, stages=_list(schema_of(Stage)), notes=_TEXTS,
    )  # fmt: skip


def _apply() -> Schema:
    return _object(
        output=_TEXT, manifest=_TEXT, files=_FILES, tensors=_COUNT, copied_bytes=_COUNT,
        computed_bytes=_COUNT, linked_bytes=_COUNT, dropped=_ANY, optimizer_state=_STATE,
        config=_ANY, steps=_STEPS, notes=_TEXTS,
    )  # fmt: skip


def _validate() -> Schema:
    row = _object({"notes": _TEXTS}, file=_TEXT, steps=_COUNT, open=_TEXTS, problems=_TEXTS)
    return _object(recipes=_list(row), errors=_ERRORS, exit_code=_COUNT)


def _inspect() -> Schema:
    stats = _object(minimum=_NUMBER, maximum=_NUMBER, mean=_NUMBER, std=_NUMBER, norm=_NUMBER,
                    zeros=_NUMBER, nan=_COUNT, inf=_COUNT)  # fmt: skip
    tensor = _object({"tied_to": _TEXT, "file": _TEXT, "stats": stats}, dtype=_TEXT,
                     shape=_list(_COUNT), bytes=_COUNT)  # fmt: skip
    node = _object({"children": _list({"$ref": "#/$defs/node"}), "dtype": _TEXT,
                    "shape": _list(_COUNT)}, name=_TEXT, copies=_COUNT, elements=_COUNT,
                   bytes=_COUNT)  # fmt: skip
    totals = _by_name(_object(tensors=_COUNT, elements=_COUNT, bytes=_COUNT))
    return {
        **_object(
            {"tree": _list({"$ref": "#/$defs/node"})}, file=_TEXT, bytes=_COUNT,
            header_sha256={"type": ["string", "null"]}, metadata=_ANY_OBJECT,
            tensors=_by_name(tensor), totals=totals, notes=_TEXTS,
        ),
        "$defs": {"node": node},
    }  # fmt: skip


def _diff() -> Schema:
    distance = _object(max_abs=_NUMBER, relative=_NUMBER, cosine=_NUMBER,
                       differing={"type": ["integer", "null"]}, nonfinite=_COUNT)  # fmt: skip
    tokens = _object(a=_COUNT, b=_COUNT, added=_by_name(_COUNT), removed=_by_name(_COUNT),
                     moved=_by_name(_object(a=_COUNT, b=_COUNT)))  # fmt: skip
    return _object(
        {"tokens": tokens}, a=_TEXT, b=_TEXT, equal=_YES, tensors=_COUNT, added=_by_name(_SPEC),
        removed=_by_name(_SPEC), reshaped=_by_name(_object(a=_SPEC, b=_SPEC)),
        changed=_by_name(distance),
    )  # fmt: skip


def _compare() -> Schema:
    layer = {"properties": {"layer": _TEXT, "modules": _by_name(_FIGURES)},
             "required": ["layer", "modules"], "allOf": [_FIGURES]}  # fmt: skip
    return _object(models=_TEXTS, notes=_TEXTS, total=_FIGURES, layers=_list(layer))


def _verify() -> Schema:
    checked = {"enum": ["tensors", "header"]}
    return _object(manifest=_TEXT, verified=_YES, checked=checked, tensors=_COUNT, bytes=_COUNT,
                   mismatches=_TEXTS)  # fmt: skip


def _ops() -> Schema:
    return _list(_object(name=_TEXT, group=_TEXT, summary=_TEXT, origin=_TEXT,
                         paper={"type": ["string", "null"]}))  # fmt: skip


def _ops_page() -> Schema:
    more: dict[str, Schema] = {"summary": _TEXT, "doc": _TEXT, "parameters": _PARAMETERS,
                               "schema": _PARAMETERS, "origin": _TEXT,
                               "paper": {"type": ["string", "null"]}}  # fmt: skip
    return _object(more, name=_TEXT, group=_TEXT, example=_ANY_OBJECT)


def _recipes() -> Schema:
    return _list(_object(name=_TEXT, path=_TEXT, vars=_ANY_OBJECT, models=_ANY_OBJECT, about=_TEXT))


def _recipes_page() -> Schema:
    variable = _object(name=_TEXT, type=_TEXT, meaning=_TEXT, default=_ANY, example=_ANY)
    return _object(name=_TEXT, about=_TEXT, path=_TEXT, variables=_list(variable),
                   models=_ANY_OBJECT, command=_TEXT, recipe=_ANY_OBJECT)  # fmt: skip


def _search() -> Schema:
    trial = _object({"message": _TEXT}, trial=_COUNT, value=_NUMBER, variables=_ANY_OBJECT)
    return _object(
        recipe=_ANY_OBJECT, output=_TEXT_OR_NONE, value={"type": "number"}, trial=_COUNT,
        variables=_ANY_OBJECT, trials=_list(trial), sampler=_TEXT, seed=_COUNT,
        storage=_TEXT_OR_NONE, interrupted=_YES,
    )  # fmt: skip


def _errors() -> Schema:
    return _object(errors=_ERRORS, exit_code=_COUNT)


def _recipe() -> Schema:
    from surgeon.recipe.editor_schema import recipe_schema

    return recipe_schema()


def _manifest() -> Schema:
    from surgeon.manifest.model import manifest_schema

    return manifest_schema()


KINDS: dict[str, Callable[[], Schema]] = {
    "recipe": _recipe,
    "manifest": _manifest,
    "plan": _plan,
    "apply": _apply,
    "validate": _validate,
    "inspect": _inspect,
    "diff": _diff,
    "compare": _compare,
    "verify": _verify,
    "search": _search,
    "errors": _errors,
    "ops": _ops,
    "ops-page": _ops_page,
    "recipes": _recipes,
    "recipes-page": _recipes_page,
}


def schema(kind: str) -> Schema:
    """Return a schema with its name, a URN; raises UsageError for a kind that is none."""
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS) or f"; there are {', '.join(KINDS)}"
        raise UsageError(f"there is no schema '{kind}'{hint}")
    found: dict[str, Any] = {
        "$schema": DRAFT,
        "$id": f"urn:surgeon:{kind}:1",
        "title": f"surgeon {kind}",
    }
    return found | {key: value for key, value in KINDS[kind]().items() if key not in found}

"""Whether a value fits a schema: the same answer as jsonschema's, or none."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from surgeon.base.errors import UsageError
from surgeon.draft.registry import OPS
from surgeon.recipe import load, read_json, ready_made
from surgeon.recipe.frame import RECIPE_SCHEMA
from surgeon.recipe.schema_check import UndecidedError, check_format, fits
from surgeon.recipe.validation import FORMATS as FORMATS_OF_OURS
from surgeon.recipe.validation import errors_of, is_surely_valid

NEEDS_A = {"required": ["a"]}
NEEDS_B = {"required": ["b"]}
# Each pair tells apart a right reading of a keyword from a near one.
SCHEMAS: list[dict[str, Any]] = [
    {},
    {"description": "x", "default": 1},
    *(
        {"type": kind}
        for kind in ("array", "boolean", "integer", "null", "number", "object", "string")
    ),
    {"type": ["integer", "null"]},
    *({"const": value} for value in (0, 1, 1.0, True, False, None, "1", "")),
    {"enum": [0, "0"]},
    {"enum": [False, "a"]},
    {"minimum": 1},
    {"maximum": 1},
    {"exclusiveMinimum": 1},
    {"exclusiveMaximum": 1},
    {"minLength": 1},
    {"pattern": "^[a-z]"},
    {"pattern": "a$"},
    {"minItems": 1},
    {"maxItems": 1},
    {"uniqueItems": True},
    {"uniqueItems": False},
    {"items": {"type": "integer"}},
    {"minProperties": 1},
    {"maxProperties": 1},
    {"properties": {"a": {"type": "integer"}}},
    {"properties": {"a": {}}, "additionalProperties": False},
    {"additionalProperties": {"type": "integer"}},
    {"propertyNames": {"pattern": "^a"}},
    {"required": ["a", "b"]},
    {"anyOf": [{"type": "string"}, {"minimum": 1}]},
    {"oneOf": [NEEDS_A, NEEDS_B]},
    {"allOf": [NEEDS_A, NEEDS_B]},
    {"not": NEEDS_A},
    {"if": NEEDS_A, "then": NEEDS_B},
    {"if": NEEDS_A, "else": NEEDS_B},
    {"if": NEEDS_A, "then": NEEDS_B, "else": {"maxProperties": 0}},
    {"then": NEEDS_A, "else": NEEDS_A},
    {"format": "digits"},
    {"items": {"not": {"const": 1}}},
]
VALUES: list[Any] = [
    None, True, False, 0, 1, 2, -1, 0.0, 1.0, 1.5, 10**400, float("inf"), "", "a", "ab", "B", "\na",
    "a\n", "0", "1", [], [1], ["1"], ["x"], [1, 1], [1, 1.0], [1, True], [0, False], ["a", "a"],
    ["1", 1], [None, None], [[1], [True]], [1, "a"], {}, {"a": 1}, {"a": 1.0}, {"a": True},
    {"a": "x"}, {"b": 2}, {"a": 1, "b": 2}, {"c": 1}, {"c": "x"}, {"a": [], "b": {}},
]  # fmt: skip


def digits(text: str) -> None:
    if not text.isdigit():
        raise UsageError("not digits")


FORMATS = {"digits": digits}
CHECKER = FormatChecker(formats=())
CHECKER.checks("digits", raises=UsageError)(lambda value: check_format(value, digits))


def test_answer_is_that_of_jsonschema() -> None:
    for schema in SCHEMAS:
        expected = Draft202012Validator(schema, format_checker=CHECKER)
        for value in VALUES:
            try:
                found = fits(value, schema, FORMATS)
            except UndecidedError:
                assert isinstance(value, list)
                continue
            assert found == expected.is_valid(value), (schema, value)


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        ({"a": 1}, {"$ref": "#/$defs/x"}),
        ("a", {"type": "string", "maxLength": 1}),
        (4, {"type": "integer", "multipleOf": 2}),
        ({"a": 1}, {"patternProperties": {"a": {}}, "additionalProperties": False}),
        ([1], {"prefixItems": [{}], "items": {"type": "null"}}),
        ("a", {"format": "unknown"}),
        ([1], {"const": [1]}),
        ({}, {"enum": [1, {}]}),
        ([1], {"items": True}),
        (1, {"not": {"maxLength": 1}}),
    ],
)
def test_what_is_not_known_is_left_undecided(value: Any, schema: dict[str, Any]) -> None:
    with pytest.raises(UndecidedError):
        fits(value, schema, FORMATS)


EXAMPLES = [({"op": name, **op.example}, op.step_schema) for name, op in OPS.items()]
RECIPES = [(read_json(path, name), RECIPE_SCHEMA) for name, path in ready_made().items()]


def test_examples_of_ops_are_known_to_be_valid() -> None:
    assert [step["op"] for step, schema in EXAMPLES if not is_surely_valid(step, schema)] == []


# What variables must be set to where "fc" will not do.
VARIABLES: dict[str, dict[str, Any]] = {
    "add-tokens": {"tokens": ["<a>"]},
    "convert-hf-to-neox": {"layers": 2},
    "drop-layers": {"keep": [0, 2]},
    "gradual-unfreezing": {"order": ["fc"]},
    "narrow-channels": {"drop": [1, 2]},
    "prune-heads": {"heads": [1], "head_size": 2},
    "replace-head": {"classes": 3},
    "rotate-residual-stream": {"hidden_size": 4},
    "resize-positions": {"from": [2, 2], "to": [3, 3]},
    "split-qkv": {"sizes": [4, 2, 2]},
    "up-scale-depth": {"lower": "0:3", "upper": "1:4"},
    "keep-experts": {"keep": 2},
    "merge-experts": {"keep": 2},
    "prune-by-importance": {"heads": 2, "head_size": 4, "neurons": 8, "layers": 1},
    "upcycle-to-experts": {"hidden_size": 4},
    "widen-hidden-layer": {"rows": 2},
}


def test_ready_made_recipes_are_known_to_be_valid(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)  # importing it fails
    for name, path in ready_made().items():
        text = read_json(path, name)
        unset = {variable: "fc" for variable, value in text["vars"].items() if value is None}
        load(name, unset | VARIABLES.get(name, {}))


ANY_JSON = st.recursive(
    st.sampled_from([value for value in VALUES if not isinstance(value, list | dict)])
    | st.sampled_from(["F32", "layers.*", "{a}.{a}", "5GB", "0:2", "torch.optim.SGD", "normal"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abx"), inner),
    max_leaves=3,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a document has values, its own place first."""
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    return [path, *(place for key in keys for place in places(value[key], (*path, key)))]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_changed_recipes_and_steps_are_judged_as_by_jsonschema(data: st.DataObject) -> None:
    document, schema = data.draw(st.sampled_from(EXAMPLES + RECIPES))
    document = copy.deepcopy(document)
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from(places(document)[1:]))
        owner = document
        for key in path:
            owner = owner[key]
        if data.draw(st.booleans()):
            owner[last] = data.draw(ANY_JSON)
        elif isinstance(owner, dict) and data.draw(st.booleans()):
            owner["another"] = data.draw(ANY_JSON)
        else:
            del owner[last]
    try:
        found = fits(document, schema, FORMATS_OF_OURS)
    except UndecidedError:
        return
    assert found == (not list(errors_of(document, schema)))

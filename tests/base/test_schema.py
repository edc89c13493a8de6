"""Type hints to JSON Schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from jsonschema import Draft202012Validator

from surgeon.base.schema import arguments, of_hint, of_parameters, parameter_name, whole_numbers
from surgeon.recipe import OPS
from surgeon.recipe.frame import RECIPE_SCHEMA


@dataclass(frozen=True)
class Says:
    json_schema: dict[str, Any]


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (bool, {"type": "boolean"}),
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (str, {"type": "string"}),
        (Any, {}),
        (Literal["a", "b"], {"enum": ["a", "b"]}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),
        (int | str, {"type": ["integer", "string"]}),
        (int | None, {"type": ["integer", "null"]}),
        (str | list[int],
         {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]}),
        (list[int | None], {"type": "array", "items": {"type": ["integer", "null"]}}),
        (Annotated[int, "how many"], {"type": "integer", "description": "how many"}),
        (Annotated[int, "rows", {"minimum": 1}],
         {"type": "integer", "description": "rows", "minimum": 1}),
        (Annotated[float, Says({"type": "string"}), "x"], {"type": "string", "description": "x"}),
    ],
)  # fmt: skip
def test_hint_becomes_schema(hint, expected):
    assert of_hint(hint) == expected


@pytest.mark.parametrize("hint", [bytes, set[int], tuple[int, int], object])
def test_hint_without_a_schema_is_a_mistake_of_ours(hint):
    with pytest.raises(TypeError, match="no JSON Schema"):
        of_hint(hint)


def example(
    draft: object,
    *,
    from_: str,
    rows: Annotated[int, "rows"] = 1,
    init: str | None = None,
    size: Annotated[int | str | None, "a size"] = None,
    shape: Annotated[list[int | None] | None, "a shape"] = None,
    sure: bool = False,
) -> None: ...


def test_parameters_become_an_object():
    assert of_parameters(example, leave_out=("draft",)) == {
        "type": "object",
        "properties": {
            "from": {"type": "string"},
            "rows": {"type": "integer", "description": "rows", "default": 1},
            "init": {"type": "string"},
            "size": {"type": ["integer", "string"], "description": "a size"},
            "shape": {
                "type": "array",
                "items": {"type": ["integer", "null"]},
                "description": "a shape",
            },
            "sure": {"type": "boolean", "default": False},
        },
        "additionalProperties": False,
        "required": ["from"],
    }


def test_schemas_share_no_objects():
    first, second = (of_parameters(example, leave_out=("draft",)) for _ in range(2))
    first["properties"]["from"]["type"] = "changed"
    assert second["properties"]["from"] == {"type": "string"}


def test_keywords_lose_their_underscore():
    assert parameter_name("from_") == "from"
    assert arguments({"from": "a", "rows": 2}, example) == {"from_": "a", "rows": 2}


@pytest.mark.slow
def test_every_schema_is_a_valid_schema():
    for schema in (RECIPE_SCHEMA, *(op.step_schema for op in OPS.values())):
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    ("value", "given", "expected"),
    [
        (3.0, {"type": "integer"}, 3),
        (3.0, {"type": ["integer", "string"]}, 3),
        (3.0, {"type": "number"}, 3.0),
        (3.0, {"anyOf": [{"type": "integer"}, {"type": "array"}]}, 3),
        ([3.0], {"anyOf": [{"type": "array", "items": {"type": "integer"}}]}, [3]),
        ([1.0, "2:3"], {"type": "array", "items": {"type": ["integer", "string"]}}, [1, "2:3"]),
        ("3.0", {"type": "integer"}, "3.0"),
    ],
)
def test_integers_may_be_written_with_a_point(value, given, expected):
    found = whole_numbers(value, given)
    assert repr(found) == repr(expected)

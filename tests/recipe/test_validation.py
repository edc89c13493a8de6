"""JSON Schema problems in words."""

import pytest

from surgeon.recipe.validation import problems_of

NUMBER = {"type": "number", "minimum": 0}
CURVE = {
    "type": "object",
    "properties": {"by_layer": {"type": "array", "items": NUMBER}},
    "required": ["by_layer"],
    "additionalProperties": False,
}


def problems(value, schema, place="here"):
    return list(problems_of(value, schema, place))


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        (1, {"type": "string"}, ["here: 1 is not of type string"]),
        ([1], {"type": ["string", "object"]}, ["here: [1] is not of type string or object"]),
        ("é", {"type": "integer"}, ['here: "é" is not of type integer']),
        (-1, NUMBER, ["here: -1 is less than the minimum of 0"]),
        ("b", {"enum": ["a", "c"]}, ["here: 'b' is unknown; known are a, c"]),
        ("colour", {"enum": ["color"]}, ["here: 'colour' is unknown; did you mean 'color'?"]),
        ([], {"enum": ["a"]}, ["here: [] is unknown; known are a"]),
        ({"a": 1}, {"required": ["b", "c"]}, ["here: 'b' is missing", "here: 'c' is missing"]),
        ({"x": {"y": [0, -1]}},
         {"properties": {"x": {"properties": {"y": {"items": NUMBER}}}}},
         ["here.x.y[1]: -1 is less than the minimum of 0"]),
        ({"rws": 1}, {"properties": {"rows": {}}, "additionalProperties": False},
         ["here: 'rws' is unknown; did you mean 'rows'?"]),
        ({"q": 1, "z": 1}, {"properties": {"rows": {}}, "additionalProperties": False},
         ["here: 'q' is unknown; known are rows", "here: 'z' is unknown; known are rows"]),
        ({}, {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
         ["here: give exactly one of 'a', 'b'"]),
        ({"a": 1, "b": 2}, {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
         ["here: give exactly one of 'a', 'b'"]),
        ({"a": 1, "b": 2}, {"not": {"required": ["a", "b"]}},
         ["here: 'a' and 'b' exclude each other"]),
        (-1, {"anyOf": [NUMBER, CURVE]}, ["here: -1 is less than the minimum of 0"]),
        ({"by_layer": [-1]}, {"anyOf": [NUMBER, CURVE]},
         ["here.by_layer[0]: -1 is less than the minimum of 0"]),
        ("x", {"anyOf": [NUMBER, CURVE]}, ['here: "x" is not of type number or object']),
        (["a" * 100], {"type": "string"}, [f'here: ["{"a" * 55}... is not of type string']),
    ],
)  # fmt: skip
def test_problem_is_put_in_words(value, schema, expected):
    assert problems(value, schema) == expected


def test_place_may_be_the_document():
    assert problems({"a": 1}, {"properties": {"a": {"type": "string"}}}, "") == [
        "a: 1 is not of type string"
    ]
    assert problems(1, {"type": "string"}, "") == ["1 is not of type string"]


def test_valid_values_have_no_problems():
    assert problems({"by_layer": [1, 2]}, {"anyOf": [NUMBER, CURVE]}) == []


def test_problems_are_in_the_order_of_their_places():
    schema = {"items": {"type": "string"}}
    assert [line.partition(":")[0] for line in problems(list(range(12)), schema)] == [
        f"here[{index}]" for index in range(12)
    ]

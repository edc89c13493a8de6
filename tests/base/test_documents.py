"""Dataclasses as documents: what is written is what the schema allows and what is read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import pytest
from jsonschema import Draft202012Validator

from surgeon.base.documents import ALWAYS, Key, MisfitError, Rest, Rule, as_json, read, schema_of


def _odd(number: int) -> str:
    return "" if number % 2 else f"{number} is even"


@dataclass(frozen=True, kw_only=True)
class Part:
    KNOWN_ALONE: ClassVar[bool] = True

    size_bytes: Annotated[int, Key("bytes"), Rule(_odd)]
    from_: Annotated[tuple[str, ...], Key("from"), "where it is from"] = ()


@dataclass(frozen=True, kw_only=True)
class Whole:
    kind: Annotated[Literal["a", "b"], ALWAYS] = "a"
    parts: Mapping[str, Part]
    name: str | tuple[str, ...] = ()
    rate: float | None = None
    others: Annotated[Mapping[str, Any], Rest({"additionalProperties": {"type": "integer"}})] = (
        field(default_factory=dict)
    )


FULL = {"kind": "b", "parts": {"x": {"bytes": 3, "from": ["y"]}}, "name": "n", "rate": 1, "z": 2}
LEAST = {"kind": "a", "parts": {"x": {"bytes": 1}}}


@pytest.mark.parametrize("document", [FULL, LEAST, {**LEAST, "name": ["n", "m"]}])
def test_what_is_read_is_written_again(document):
    assert as_json(read(Whole, document)) == document
    Draft202012Validator(schema_of(Whole)).validate(document)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"parts": 3}, "parts: 3 is not an object"),
        ({"parts": {"x": {}}}, "parts.x.bytes: is missing"),
        ({"parts": {"x": {"bytes": True}}}, "parts.x.bytes: True is not an integer"),
        ({"parts": {"x": {"bytes": 2}}}, "parts.x.bytes: 2 is even"),
        ({"parts": {"x": {"bytes": 1, "form": 1}}}, "parts.x: 'form' is unknown; known is bytes"),
        ({"parts": {"x": {"bytes": 1, "from": ["a", 1]}}}, r"from\[1\]: 1 is not a string"),
        ({"kind": "c"}, "kind: 'c' is unknown; known are a, b"),
        ({"name": [1]}, r"name\[0\]: 1 is not a string"),
        ({"name": 1}, "name: 1 is not"),
        ({"rate": "1"}, "rate: '1' is not a number"),
    ],
)
def test_what_is_of_another_class_is_told_by_its_place(changes, problem):
    with pytest.raises(MisfitError, match=problem):
        read(Whole, {**LEAST, **changes})

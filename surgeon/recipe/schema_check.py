"""Whether a value fits a JSON Schema, for the keywords that ours use.

Importing jsonschema takes 0.07 s, a third of what `validate` and `plan` may take, and most recipes
are valid. What cannot be told here with certainty is undecided; finding and wording problems stays
with jsonschema.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from surgeon.base.errors import UsageError
from surgeon.base.lists import as_list

# Looks at a string; raises UsageError for one that is not of the format.
FormatCheck = Callable[[str], object]
Formats = Mapping[str, FormatCheck]

_TYPES: dict[str, Callable[[Any], bool]] = {
    "array": lambda value: isinstance(value, list),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: _is_number(value) and (isinstance(value, int) or value.is_integer()),
    "null": lambda value: value is None,
    "number": lambda value: _is_number(value),
    "object": lambda value: isinstance(value, dict),
    "string": lambda value: isinstance(value, str),
}
_KNOWN = {
    "type", "const", "enum", "format", "anyOf", "oneOf", "allOf", "not", "if", "then", "else",
    "properties", "additionalProperties", "propertyNames", "required", "minProperties",
    "maxProperties", "items", "minItems", "maxItems", "uniqueItems", "minLength", "pattern",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "description", "default",
}  # fmt: skip


class UndecidedError(Exception):
    """A schema or a value has something that is not known here."""


def fits(value: Any, schema: Mapping[str, Any], formats: Formats) -> bool:
    """Say whether a value is valid; raises UndecidedError where only jsonschema knows."""
    # A keyword that is not known may change what another one means.
    if not isinstance(schema, dict) or not schema.keys() <= _KNOWN:
        raise UndecidedError
    return all(_holds(keyword, value, schema, formats) for keyword in schema)


def _holds(keyword: str, value: Any, schema: Mapping[str, Any], formats: Formats) -> bool:
    """Say whether a value is as one keyword of a schema wants it."""
    wanted = schema[keyword]
    match keyword, value:
        case "type", _:
            return any(_TYPES[kind](value) for kind in as_list(wanted))
        case "const", _:
            return _equal(value, wanted)
        case "enum", _:
            return any(_equal(value, option) for option in wanted)
        case "format", _:
            return _has_format(value, wanted, formats)
        case "anyOf", _:
            return any(fits(value, branch, formats) for branch in wanted)
        case "oneOf", _:
            return sum(fits(value, branch, formats) for branch in wanted) == 1
        case "allOf", _:
            return all(fits(value, branch, formats) for branch in wanted)
        case "not", _:
            return not fits(value, wanted, formats)
        case "if", _:
            branch = "then" if fits(value, wanted, formats) else "else"
            return fits(value, schema.get(branch, {}), formats)
        case "properties", dict():
            return all(fits(value[k], inner, formats) for k, inner in wanted.items() if k in value)
        case "additionalProperties", dict():
            others = value.keys() - schema.get("properties", {}).keys()
            if wanted is False:
                return not others
            return all(fits(value[key], wanted, formats) for key in others)
        case "propertyNames", dict():
            return all(fits(key, wanted, formats) for key in value)
        case "required", dict():
            return all(key in value for key in wanted)
        case "items", list():
            return all(fits(item, wanted, formats) for item in value)
        case "uniqueItems", list():
            return not wanted or _are_unique(value)
        case ("minProperties", dict()) | ("minItems", list()) | ("minLength", str()):
            return bool(len(value) >= wanted)
        case ("maxProperties", dict()) | ("maxItems", list()):
            return bool(len(value) <= wanted)
        case "pattern", str():
            return bool(re.search(wanted, value))
        case "minimum", int() | float() if _is_number(value):
            return bool(value >= wanted)
        case "maximum", int() | float() if _is_number(value):
            return bool(value <= wanted)
        case "exclusiveMinimum", int() | float() if _is_number(value):
            return bool(value > wanted)
        case "exclusiveMaximum", int() | float() if _is_number(value):
            return bool(value < wanted)
    return True  # of values of other types


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(value: Any, wanted: Any) -> bool:
    """Compare as JSON does, where 1 is 1.0 but not true."""
    if isinstance(wanted, list | dict):
        raise UndecidedError
    return isinstance(value, bool) is isinstance(wanted, bool) and bool(value == wanted)


def _are_unique(items: list[Any]) -> bool:
    if any(isinstance(item, bool | list | dict) for item in items):
        raise UndecidedError
    return len(set(items)) == len(items)


def _has_format(value: Any, name: str, formats: Formats) -> bool:
    if name not in formats:
        raise UndecidedError
    try:
        return check_format(value, formats[name])
    except UsageError:
        return False


def check_format(value: Any, check: FormatCheck) -> bool:
    """Look at a string, or at those in a list; raises UsageError for one that is not of a format.

    Returns True for all others, as jsonschema wants it.
    """
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            check(item)
    return True

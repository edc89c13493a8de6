"""Type hints to JSON Schema, so that an op, a merge or an initialisation is declared once.

Understood: bool, int, float, str, None, Literal, list, dict with str keys, unions, and
`Annotated[hint, "description", {more JSON Schema}]`, where an object with a `json_schema` says what
recipes may write instead of the hint. A parameter without a default is required.
A parameter named after a Python keyword ends with an underscore, which recipes leave out.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from surgeon.base.lists import as_list

Schema = dict[str, Any]
DRAFT = "https://json-schema.org/draft/2020-12/schema"

_PLAIN: dict[Any, Schema] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    type(None): {"type": "null"},
    Any: {},
}


def of_hint(hint: Any) -> Schema:
    """Return the JSON Schema of one type hint; raises TypeError for what has none."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is None and hint in _PLAIN:
        return dict(_PLAIN[hint])
    if origin is Annotated:
        return _of_annotated(arguments)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": of_hint(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": of_hint(arguments[1])}
    if origin in (Union, types.UnionType):
        return _union([of_hint(argument) for argument in arguments])
    raise TypeError(f"no JSON Schema for {hint!r}")


def _of_annotated(arguments: tuple[Any, ...]) -> Schema:
    schema = of_hint(arguments[0])
    for note in arguments[1:]:
        if isinstance(note, str):
            schema["description"] = note
        elif isinstance(note, dict):
            schema |= note
        else:
            schema = dict(note.json_schema)
    return schema


def _union(options: list[Schema]) -> Schema:
    if all(set(option) == {"type"} for option in options):
        return {"type": [option["type"] for option in options]}
    return {"anyOf": options}


def _given(hint: Any) -> Any:
    """Return an optional parameter's hint without None: a recipe leaves it out instead."""
    arguments = get_args(hint)
    if get_origin(hint) is Annotated:
        return Annotated[(_given(arguments[0]), *arguments[1:])]
    rest = tuple(argument for argument in arguments if argument is not type(None))
    return Union[rest] if rest != arguments else hint  # noqa: UP007 (made at run time)


def parameter_name(argument: str) -> str:
    """Return a Python argument's name in recipes: `from_` is `from`."""
    return argument.rstrip("_")


def of_parameters(function: Callable[..., Any], *, leave_out: tuple[str, ...] = ()) -> Schema:
    """Return the schema of a function's (or dataclass's) keyword parameters, as an object."""
    properties: dict[str, Schema] = {}
    required: list[str] = []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if parameter.name in leave_out:
            continue
        name = parameter_name(parameter.name)
        hint = parameter.annotation
        properties[name] = of_hint(_given(hint) if parameter.default is None else hint)
        if parameter.default is inspect.Parameter.empty:
            required.append(name)
        elif parameter.default is not None:
            properties[name]["default"] = parameter.default
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": required} if required else {})


def arguments(values: Mapping[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """Return JSON parameters under the names that the Python function gives them."""
    by_name = {parameter_name(name): name for name in inspect.signature(function).parameters}
    return {by_name[name]: value for name, value in values.items()}


def whole_numbers(value: Any, schema: Schema) -> Any:
    """Return a value with integers where its schema wants them; JSON Schema lets 3.0 be one."""
    kinds: list[str] = []
    items: Schema = {}
    for option in (*schema.get("anyOf", ()), schema):
        kind = option.get("type", [])
        kinds += as_list(kind)
        items = option.get("items", items)
    if isinstance(value, float) and "integer" in kinds and "number" not in kinds:
        return int(value)
    if isinstance(value, list):
        return [whole_numbers(item, items) for item in value]
    return value

"""Frozen dataclasses as JSON documents: schema, writer and reader of each come from its fields.

A field is `name: hint`, or `name: Annotated[hint, note, ...]`. Notes are a description, further
JSON Schema, the `Key` that it has in JSON, `ALWAYS`, a `Rest`, or a `Rule`. What has a default may
be left out, and is left out where it is equal to it.
Understood are bool, int, float, str, Any, Literal, tuple[X, ...], Mapping[str, X], unions, and
dataclasses. A class with `KNOWN_ALONE = True` refuses keys that it does not have; others pass over
them, so that later versions may add some.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from surgeon.base.errors import did_you_mean
from surgeon.base.schema import Schema, of_hint

Described = TypeVar("Described")
Read = Callable[[object], Any]
Write = Callable[[Any], object]

# A note: written also where it is equal to its default.
ALWAYS = object()
_WORDS = {
    Mapping: "an object",
    tuple: "an array",
    str: "a string",
    int: "an integer",
    bool: "true or false",
    float: "a number",
}


@dataclass(frozen=True)
class Key:
    """A note: the name that a field has in JSON; an empty one for what is not written."""

    name: str


@dataclass(frozen=True)
class Rest:
    """A note: the field holds all keys that no other field has; `schema` says what those may be."""

    schema: Schema


@dataclass(frozen=True)
class Rule:
    """A note: `problem` says of a value what is wrong with it, or nothing."""

    problem: Callable[[Any], str]


class MisfitError(ValueError):
    """A document is not of its class: at which place, and why."""

    def __init__(self, what: str, place: str = "") -> None:
        super().__init__(f"{place}: {what}" if place else what)
        self.what, self.place = what, place

    def inside(self, key: str) -> MisfitError:
        """Return the same of what is inside of a key, or of an item such as `[0]`."""
        dot = "." if self.place and not self.place.startswith("[") else ""
        return MisfitError(self.what, f"{key}{dot}{self.place}")


@dataclass(frozen=True)
class _Field:
    name: str
    key: str
    schema: Schema
    read: Read
    write: Write | None
    default: Any
    is_always_written: bool
    is_rest: bool


@cache
def _fields(kind: Any) -> tuple[_Field, ...]:
    hints = get_type_hints(kind, include_extras=True)
    found = (_field(hints[field.name], field.name, _default(field)) for field in fields(kind))
    return tuple(field for field in found if field.key or field.is_rest)


def _default(field: Any) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _field(hint: Any, name: str, default: Any) -> _Field:
    notes = getattr(hint, "__metadata__", ())
    plain = _without_none(hint)
    key = next((note.name for note in notes if isinstance(note, Key)), name)
    rest = next((note for note in notes if isinstance(note, Rest)), None)
    is_always_written = any(note is ALWAYS for note in notes)
    schema = rest.schema if rest else _schema(plain) if key else {}
    if is_always_written and default is not MISSING:
        schema = {**schema, "default": default}
    return _Field(
        name,
        "" if rest else key,
        schema,
        _reader(plain) if key else _any,
        _writer(plain) if key else None,
        default,
        is_always_written,
        rest is not None,
    )


def _without_none(hint: Any) -> Any:
    if get_origin(hint) is Annotated:
        inner, *notes = get_args(hint)
        return Annotated[(_without_none(inner), *notes)]
    if get_origin(hint) in (Union, types.UnionType):
        kept = tuple(option for option in get_args(hint) if option is not type(None))
        return Union[kept]  # noqa: UP007 (made at run time)
    return hint


# --- Schema ---------------------------------------------------------------------------------------


def schema_of(kind: Any) -> Schema:
    """Return the JSON Schema of a dataclass."""
    return _schema(kind)


def _schema(hint: Any) -> Schema:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        schema = _schema(arguments[0])
        for note in arguments[1:]:
            if isinstance(note, str):
                schema["description"] = note
            elif isinstance(note, dict):
                schema |= note
        return schema
    if is_dataclass(hint):
        return _object_schema(hint)
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0])}
    if origin is not None and _is_mapping(origin):
        inner = _schema(arguments[1])
        return {"type": "object", **({"additionalProperties": inner} if inner else {})}
    if origin in (Union, types.UnionType):
        schema = {}
        kinds = []
        for option in map(_schema, arguments):
            kinds.append(option.pop("type"))
            schema |= option
        return {"type": kinds, **schema}
    return of_hint(hint)


def _is_mapping(origin: Any) -> bool:
    """Say whether the origin of a hint is that of mappings."""
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _object_schema(kind: Any) -> Schema:
    schema: Schema = {"type": "object", "properties": {}, "additionalProperties": False}
    required = []
    for field in _fields(kind):
        if field.is_rest:
            schema["properties"] |= field.schema.get("properties", {})
            schema |= {k: v for k, v in field.schema.items() if k != "properties"}
            continue
        schema["properties"][field.key] = field.schema
        if field.default is MISSING:
            required.append(field.key)
    return schema | ({"required": required} if required else {})


# --- Writing --------------------------------------------------------------------------------------


def as_json(value: Any) -> dict[str, Any]:
    """Return a dataclass as the object that is written, its keys in the order of its fields."""
    found: dict[str, Any] = {}
    kind: Any = type(value)
    for name, key, default, write in _written(kind):
        item = getattr(value, name)
        if not key:
            found |= item
        elif item != default:
            found[key] = write(item) if write else item
    return found


@cache
def _written(kind: Any) -> tuple[tuple[str, str, Any, Write | None], ...]:
    """Return of each field its name, its key, the default that is left out, and its writer."""
    return tuple(
        (
            field.name,
            field.key,
            # Nothing is equal to MISSING.
            MISSING if field.is_always_written else field.default,
            field.write,
        )
        for field in _fields(kind)
    )


def _writer(hint: Any) -> Write | None:
    """Return what turns a value into what json writes; None where it is that already."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _writer(arguments[0])
    if is_dataclass(hint):
        return as_json
    if origin is tuple:
        item = _writer(arguments[0])
        return list if item is None else lambda value: [item(part) for part in value]
    if _is_mapping(origin):
        entry = _writer(arguments[1])
        if entry is None:
            return dict
        return lambda value: {key: entry(part) for key, part in value.items()}
    if origin in (Union, types.UnionType):
        return lambda value: list(value) if isinstance(value, tuple) else value
    return None


# --- Reading --------------------------------------------------------------------------------------


def read(kind: type[Described], value: object) -> Described:
    """Return a dataclass from parsed JSON; raises MisfitError where it is not of its class."""
    return _object(kind, value)  # type: ignore[no-any-return]


def _object(kind: Any, value: object) -> Any:
    if not isinstance(value, dict):
        raise _not(value, Mapping)
    found: dict[str, Any] = {}
    known = _fields(kind)
    if getattr(kind, "KNOWN_ALONE", False):
        keys = [field.key for field in known]
        if unknown := [key for key in value if key not in keys]:
            raise MisfitError(f"'{unknown[0]}' is unknown; known is {', '.join(keys)}")
    for field in known:
        if field.is_rest:
            taken = {other.key for other in known}
            found[field.name] = {k: v for k, v in value.items() if k not in taken}
        elif field.key in value:
            try:
                found[field.name] = field.read(value[field.key])
            except MisfitError as error:
                raise error.inside(field.key) from None
        elif field.default is MISSING:
            raise MisfitError("is missing", field.key)
    return kind(**found)


def _any(value: object) -> object:
    return value


def _reader(hint: Any) -> Read:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        rules = [note for note in arguments[1:] if isinstance(note, Rule)]
        return _ruled(_reader(arguments[0]), rules) if rules else _reader(arguments[0])
    if is_dataclass(hint):
        return lambda value: _object(hint, value)
    if origin is tuple:
        return _items(_reader(arguments[0]))
    if _is_mapping(origin):
        return _entries(_reader(arguments[1]))
    if origin is Literal:
        return _choice(arguments)
    if origin in (Union, types.UnionType):
        readers = [(get_origin(option) is tuple, _reader(option)) for option in arguments]
        return lambda value: next(
            (own for is_list, own in readers if is_list == isinstance(value, list)), readers[-1][1]
        )(value)
    return _any if hint is Any else _plain(hint)


def _ruled(inner: Read, rules: list[Rule]) -> Read:
    def read_ruled(value: object) -> Any:
        found = inner(value)
        for rule in rules:
            if problem := rule.problem(found):
                raise MisfitError(problem)
        return found

    return read_ruled


def _plain(kind: Any) -> Read:
    allowed = (int, float) if kind is float else kind

    def read_plain(value: object) -> object:
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            raise _not(value, kind)
        return value

    return read_plain


def _items(item: Read) -> Read:
    def read_items(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise _not(value, tuple)
        found = []
        for index, part in enumerate(value):
            try:
                found.append(item(part))
            except MisfitError as error:
                raise error.inside(f"[{index}]") from None
        return tuple(found)

    return read_items


def _entries(entry: Read) -> Read:
    def read_entries(value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _not(value, Mapping)
        if entry is _any:
            return value
        found = {}
        for key, part in value.items():
            try:
                found[key] = entry(part)
            except MisfitError as error:
                raise error.inside(key) from None
        return found

    return read_entries


def _choice(allowed: tuple[Any, ...]) -> Read:
    def read_choice(value: object) -> object:
        if not any(value == word and type(value) is type(word) for word in allowed):
            known = f"; known are {', '.join(map(str, allowed))}"
            hint = did_you_mean(value, allowed) if isinstance(value, str) else ""
            raise MisfitError(f"{value!r:.60} is unknown{hint or known}")
        return value

    return read_choice


def _not(value: object, kind: Any) -> MisfitError:
    return MisfitError(f"{value!r:.60} is not {_WORDS[kind]}")

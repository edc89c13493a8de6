"""A recipe's variables: their values in the places where `${name}` stands.

A value is written in the form that its place wants: a number where a name belongs is its text, and
one item where a list belongs is a list of one. Nothing else is turned into anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from surgeon.base.errors import Hints, UsageError, did_you_mean
from surgeon.base.schema import Schema
from surgeon.recipe.validation import errors_of, is_surely_valid

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")
# What variables may add to a recipe: a value that is used often is looked at as often.
_MOST_FILLED = 10_000_000
_PARTS = ("models", "seed", "steps", "training", "output")

Path = tuple[str | int, ...]
# What checks a part of a recipe: where it is, the part itself, its schema.
Checked = tuple[Path, Any, Schema]


class TypedNumber(float):
    """A number that remembers how it was written: a layer called 1.10 is not 1.1."""

    text: str

    def __new__(cls, text: str) -> TypedNumber:
        number = super().__new__(cls, text)
        number.text = text
        return number


@dataclass(frozen=True)
class Filled:
    """A recipe with its variables' values, and the places of those that stand alone."""

    text: dict[str, Any]
    values: dict[str, Any]
    places: dict[Path, str]


def fill_in(
    text: Mapping[str, Any], overrides: Mapping[str, Any], label: str
) -> tuple[Filled, list[str]]:
    """Return the recipe with its variables' values in their places, and what names are wrong."""
    declared = dict(text.get("vars", {}))
    values = {**declared, **overrides}
    problems = [
        f"{label}: --set {name}: the recipe declares no variable of that name"
        + (did_you_mean(name, declared) or f"; it declares {', '.join(declared) or 'none'}")
        for name in overrides
        if name not in declared
    ]
    hint = Hints(values)
    sizes = {name: len(_as_text(value)) for name, value in values.items()}
    left = _MOST_FILLED
    places: dict[Path, str] = {}

    def fill(value: Any, path: Path) -> Any:
        if isinstance(value, dict):
            return {key: fill(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [fill(item, (*path, index)) for index, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        used = _VARIABLE.findall(value)
        if unknown := [name for name in used if name not in values]:
            problems.extend(
                f"{label}: {place_of(path)}: '${{{name}}}' is not declared under 'vars'{hint(name)}"
                for name in unknown
            )
            return value
        nonlocal left
        left -= sum(sizes[name] for name in used)
        if left < 0:
            raise UsageError(
                f"{label}: its variables add more than {_MOST_FILLED:,} characters to it"
            )
        if whole := _VARIABLE.fullmatch(value):
            places[path] = whole[1]
            return deepcopy(values[whole[1]])  # each place may want another form of it
        return _VARIABLE.sub(lambda found: _as_text(values[found[1]]), value)

    filled = {key: fill(value, (key,)) if key in _PARTS else value for key, value in text.items()}
    return Filled(filled, values, places), problems


def place_of(path: Path) -> str:
    """Return how messages write a place: `steps[0].rows`."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")


def _as_text(value: Any) -> str:
    if isinstance(value, TypedNumber):
        return value.text
    return value if isinstance(value, str) else json.dumps(value)


def unset(filled: Filled, parts: Callable[[], Iterator[Checked]], label: str) -> list[str]:
    """Return a line for every variable that has no value, with the form that it takes."""
    missing = [name for name, value in filled.values.items() if value is None]
    if not missing:
        return []
    forms: dict[str, str] = {}
    for start, part, schema in parts():
        for path, kinds in _wrong(part, schema, start).items():
            if (name := filled.places.get(path)) in missing:
                forms.setdefault(str(name), _form(kinds))
    return [
        f"{label}: vars.{name}: must be set; give --set {name}={forms.get(name, 'VALUE')}"
        for name in missing
    ]


def fit(filled: Filled, parts: Callable[[], Iterator[Checked]]) -> None:
    """Give values the form that their places want, where there is one."""
    by_part: dict[Path, set[Path]] = {}
    for path in filled.places:
        by_part.setdefault(path[:2] if path[0] == "steps" else (), set()).add(path)
    for start, part, schema in parts():
        inside = by_part.get(start, set())
        # A recipe with a step per layer has many, and most of them fit.
        if inside and not is_surely_valid(part, schema):
            for place in _wrong(part, schema, start):
                if any(place[: len(path)] == path for path in inside):
                    _fit(filled.text, place, (start, part, schema))


def _fit(text: Any, place: Path, checked: Checked) -> None:
    """Write the value at a place in another form, if there is one of the type that is wanted."""
    start, part, schema = checked
    holder = text
    for key in place[:-1]:
        holder = holder[key]
    given = holder[place[-1]]
    for other in _others(given):
        holder[place[-1]] = other
        if all(wrong[: len(place)] != place for wrong in _wrong(part, schema, start)):
            return
    holder[place[-1]] = given


def _others(value: Any) -> list[Any]:
    """Return the other forms that a value has."""
    if value is None or isinstance(value, list):
        return []
    texts = [] if isinstance(value, str | dict) else [_as_text(value)]
    return [*texts, [value], *([text] for text in texts)]


def _wrong(part: Any, schema: Schema, start: Path) -> dict[Path, list[str]]:
    """Return the places where a schema wants other types, and which."""
    found: dict[Path, list[str]] = {}
    for error in errors_of(part, schema):
        for path, kinds in _wanted(error):
            found.setdefault((*start, *path), []).extend(kinds)
    return found


def _wanted(error: ValidationError) -> Iterator[tuple[Path, list[str]]]:
    """Yield where a problem is one of type, and the types that are wanted there."""
    here: Any = tuple(error.absolute_path)
    wanted: Any = error.validator_value
    if error.validator == "type":
        yield here, [wanted] if isinstance(wanted, str) else list(wanted)
    elif error.validator in ("anyOf", "oneOf"):
        branches: dict[Any, list[tuple[Path, list[str]]]] = {}
        for inner in error.context or ():
            branches.setdefault(inner.schema_path[0], []).extend(_wanted(inner))
        own = [kinds for found in branches.values() for path, kinds in found if path == here]
        if len(own) == len(wanted):
            yield here, [kind for kinds in own for kind in kinds]
        else:  # of a branch whose type the value has
            for found in branches.values():
                yield from found if all(path != here for path, _ in found) else ()


def with_forms(problems: Iterable[str], filled: Filled) -> list[str]:
    """Add to problems with a variable's value how one of the right type is written."""
    names = {place_of(path): name for path, name in filled.places.items()}
    said: list[str] = []
    for problem in problems:
        place, _, rest = problem.partition(": ")
        _, is_type, kinds = rest.rpartition(" is not of type ")
        is_variable = is_type and place in names
        form = f"; give --set {names[place]}={_form(kinds.split(' or '))}" if is_variable else ""
        said.append(f"{problem}{form}")
    return said


def _form(kinds: Collection[str]) -> str:
    """Return an example of how the command line writes a value of these types."""
    if {"integer", "string", "array"} <= set(kinds):
        return "0:4"
    forms = {"string": "NAME", "number": "0.5", "integer": "3", "boolean": "true",
             "array": """'["a", "b"]'"""}  # fmt: skip
    return next((form for kind, form in forms.items() if kind in kinds), """'{"name": ...}'""")

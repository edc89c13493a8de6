"""JSON Schema problems in words: where, what was found, and the nearest valid word."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from surgeon.base import indices, patterns
from surgeon.base.errors import SurgeonError, UsageError, did_you_mean
from surgeon.base.lists import as_list
from surgeon.base.units import parse_size
from surgeon.numeric.dtypes import require_dtype
from surgeon.recipe.schema_check import Formats, UndecidedError, check_format, fits

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

FORMATS: Formats = {
    "name-pattern": patterns.check,
    "destination": patterns.check_destination,
    "size": parse_size,
    "indices": indices.parsed,
    "dtype": require_dtype,
}


def problems_of(value: Any, schema: Mapping[str, Any], place: str) -> Iterator[str]:
    """Yield `place: what is wrong` for everything that a schema finds wrong."""
    if is_surely_valid(value, schema):
        return
    errors = sorted(errors_of(value, schema), key=lambda error: list(error.absolute_path))
    # Of several missing keys there is an error each, and each is worded as all of them.
    yield from dict.fromkeys(line for error in errors for line in _explain(error, place))


def is_surely_valid(value: Any, schema: Mapping[str, Any]) -> bool:
    """Say whether a value is valid; where that is not certain, it is not said to be."""
    try:
        return fits(value, schema, FORMATS)
    except UndecidedError:
        return False


def errors_of(value: Any, schema: Mapping[str, Any]) -> Iterator[ValidationError]:
    """Return what jsonschema finds."""
    # Here, since importing it takes a third of the start of a command.
    from jsonschema import Draft202012Validator, FormatChecker

    checker = FormatChecker(formats=())
    for name, check in FORMATS.items():
        checker.checks(name, raises=UsageError)(partial(check_format, check=check))
    return Draft202012Validator(schema, format_checker=checker).iter_errors(value)


def _explain(error: ValidationError, place: str) -> Iterator[str]:
    where = place + "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path
    )
    prefix = f"{where.lstrip('.')}: " if where else ""
    wanted: Any = error.validator_value
    instance: Any = error.instance
    match error.validator:
        case "additionalProperties":
            schema: Any = error.schema
            known = list(schema["properties"])
            for key in instance:
                if key not in known:
                    hint = _belongs(key) or did_you_mean(key, known)
                    hint = hint or f"; known are {', '.join(known)}"
                    yield f"{prefix}'{key}' is unknown{hint}"
        case "required":
            known = {} if not isinstance(error.schema, dict) else error.schema.get("properties", {})
            for key in (key for key in wanted if key not in instance):
                only = known.get(key, {}).get("const")
                say = f"; say {json.dumps(key)}: {json.dumps(only)}" if only is not None else ""
                yield f"{prefix}'{key}' is missing{say}"
        case "const":
            yield f"{prefix}{_shorten(instance)} is unknown; known is {json.dumps(wanted)}"
        case "oneOf" if all(set(option) == {"required"} for option in wanted):
            choices = [repr(option["required"][0]) for option in wanted]
            yield f"{prefix}give exactly one of {', '.join(choices)}"
        case "anyOf" | "oneOf":
            yield from _closest_branch(error, place, prefix)
        case "not":
            words = " and ".join(repr(word) for word in wanted["required"])
            yield f"{prefix}{words} exclude each other"
        case "enum":
            options = [str(option) for option in wanted]
            hint = did_you_mean(str(instance), options) or f"; known are {', '.join(options)}"
            word = repr(instance) if isinstance(instance, str) else json.dumps(instance)
            yield f"{prefix}{_cut(word)} is unknown{hint}"
        case "pattern" if (what := _described(error.schema)).startswith("the import path"):
            yield f"{prefix}{_shorten(instance)} is not {what}"
        case "format" if isinstance(error.cause, SurgeonError):
            yield f"{prefix}{error.cause}"
        case "type":
            names = " or ".join(as_list(wanted))
            yield f"{prefix}{_shorten(instance)} is not of type {names}"
        case _:
            yield f"{prefix}{error.message}"


# Where the words of a recipe's frame belong, for whoever wrote them elsewhere.
_PLACES = {
    "it belongs at the top of the recipe, beside 'steps'": (
        "about", "vars", "models", "seed", "steps", "training", "output"
    ),
    "it belongs in 'training'": ("optimizer", "stages", "teacher", "unfreeze"),
    "it belongs in a stage of training.stages": (
        "train", "freeze", "groups", "duration", "scheduler", "optimizer_state", "after"
    ),
    "it belongs in a group of a stage's 'groups', or in optimizer.args": (
        "lr", "lr_scale", "weight_decay"
    ),
    "what it would hold stands beside 'op'": ("params", "parameters", "args"),
}  # fmt: skip


def _described(schema: Any) -> str:
    return str(schema.get("description", "")) if isinstance(schema, Mapping) else ""


def _belongs(key: str) -> str:
    """Return a hint at the place where a word of the frame belongs, empty for other words."""
    found = (place for place, words in _PLACES.items() if key in words)
    return next((f"; {place}" for place in found), "")


def _closest_branch(error: ValidationError, place: str, prefix: str) -> Iterator[str]:
    """Explain by the branch whose type the value has; by all types where none has."""
    branches: dict[Any, list[ValidationError]] = {}
    context: list[ValidationError] = list(error.context or [])
    for problem in context:
        branches.setdefault(problem.schema_path[0], []).append(problem)
    fitting = [
        problems
        for problems in branches.values()
        if not any(p.validator == "type" and not p.relative_path for p in problems)
    ]
    if fitting:
        closest = min(fitting, key=len)
        for problem in closest:
            yield from _explain(problem, place)
    else:
        kinds: list[Any] = [problems[0].validator_value for problems in branches.values()]
        flat = [kind for several in kinds for kind in as_list(several)]
        names = " or ".join(dict.fromkeys(map(str, flat)))
        yield f"{prefix}{_shorten(error.instance)} is not of type {names}"


def _shorten(value: Any) -> str:
    # Of a recipe all is JSON; YAML has dates and more.
    return _cut(json.dumps(value, ensure_ascii=False, default=str))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."

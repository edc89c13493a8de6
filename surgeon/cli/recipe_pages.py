"""The ready-made recipes: their list, and the page of each.

What a recipe does not say of a variable under `help`, the place says where it is used.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import surgeon.merges
import surgeon.ops  # noqa: F401  (importing the packages registers the ops)
from surgeon.base.errors import UsageError, did_you_mean
from surgeon.base.ready_made import read_json, ready_made, source_of
from surgeon.base.schema import Schema
from surgeon.base.tables import indented, table, wrapped
from surgeon.cli.catalogue import type_text
from surgeon.draft.registry import COMMON, OPS
from surgeon.recipe.frame import RECIPE_SCHEMA

Json = dict[str, Any]
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")


@dataclass(frozen=True)
class Variable:
    """A variable of a recipe; `example` is what the recipe is shown with, or its default."""

    name: str
    type: str
    meaning: str
    default: Any
    example: Any


def text_of(name: str) -> Json:
    """Return a ready-made recipe's JSON; raises UsageError for a name that is none."""
    known = ready_made()
    if name not in known:
        hint = did_you_mean(name, known) or "; `surgeon recipes` lists them"
        raise UsageError(f"there is no ready-made recipe '{name}'{hint}")
    found: Json = read_json(known[name], known[name].name)
    return found


def variables_of(text: Json) -> list[Variable]:
    """Return a recipe's variables, each explained by the first place where it is used."""
    places: dict[str, tuple[Schema, str]] = {}
    for part, schema in _parts(text):
        for variable, found, about in _uses(part, schema, ""):
            places.setdefault(variable, (found, about))
    examples, meanings = text.get("example", {}), text.get("help", {})
    rows = []
    for name, default in text.get("vars", {}).items():
        schema, about = places.get(name, ({}, ""))
        meaning, example = meanings.get(name, about), examples.get(name, default)
        rows.append(Variable(name, type_text(schema), meaning, default, example))
    return rows


def _parts(text: Json) -> Iterator[tuple[Any, Schema]]:
    for step in text["steps"]:
        if step["op"] in OPS:
            parameters = OPS[step["op"]].parameters
            yield step, {**parameters, "properties": {**COMMON, **parameters["properties"]}}
    for key in ("training", "output", "models"):
        if key in text:
            yield text[key], RECIPE_SCHEMA["properties"][key]


def _uses(value: Any, schema: Schema, about: str) -> Iterator[tuple[str, Schema, str]]:
    """Yield each variable with the schema of its place, and the nearest description of that."""
    about = str(schema.get("description", about))
    match value:
        case dict():
            for key, item in value.items():
                inner = _property(schema, key)
                yield from _uses(item, inner, str(key))
        case list():
            items = schema.get("items", {})
            for item in value:
                yield from _uses(item, items if isinstance(items, dict) else {}, about)
        case str():
            for name in _VARIABLE.findall(value):
                is_whole = value == f"${{{name}}}"
                yield name, schema if is_whole else {"type": "string"}, about


def _property(schema: Schema, key: str) -> Schema:
    for branch in (schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())):
        if isinstance(found := branch.get("properties", {}).get(key), dict):
            return found
        if isinstance(found := branch.get("additionalProperties"), dict):
            return found
    return {}


def command_of(name: str, text: Json) -> str:
    """Return the command that applies a recipe to the example that it names."""
    given = dict(text.get("example", {}))
    # A file has no config beside it that could say the others.
    needed = {row: given[row] for row, value in text.get("vars", {}).items()
              if (value is None or isinstance(value, dict)) and row in given}  # fmt: skip
    models = [f"{model}.safetensors" for model, path in text.get("models", {}).items() if not path]
    if not models and '"models": "*"' in json.dumps(text):
        models = ["other.safetensors", "third.safetensors"]
    output = "out" if text.get("output") else "out.safetensors"
    words = ["surgeon", "apply", name, "in.safetensors", *models, "-o", output]
    for row, value in needed.items():
        words += ["--set", f"{row}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def page(name: str) -> str:
    """Return a ready-made recipe's page; raises UsageError for a name that is none."""
    text = text_of(name)
    rows = [
        (
            row.name,
            row.type,
            "must be set" if row.default is None else json.dumps(row.default),
            "" if row.example == row.default else json.dumps(row.example),
            row.meaning,
        )
        for row in variables_of(text)
    ]
    parts = [f"{name}\n{wrapped(text.get('about', ''))}"]
    if rows:
        titles = ("name", "type", "default", "example", "what")
        parts.append("variables\n" + table(titles, rows, indent=2))
    parts.append(f"for example\n  {command_of(name, text)}")
    parts.append("recipe\n" + indented(source_of(name)))
    return "\n\n".join(parts)


def as_json(name: str) -> Json:
    """Return all that is known of a ready-made recipe; raises UsageError for no such name."""
    text = text_of(name)
    rows: list[Mapping[str, Any]] = [vars(row) for row in variables_of(text)]
    return {
        "name": name,
        "about": text.get("about", ""),
        "path": str(ready_made()[name]),
        "variables": rows,
        "models": text.get("models", {}),
        "command": command_of(name, text),
        "recipe": text,
    }


def recipes() -> list[Json]:
    """Return the ready-made recipes in short."""
    texts = {name: text_of(name) for name in ready_made()}
    return [
        {
            "name": name,
            "path": str(ready_made()[name]),
            "vars": text.get("vars", {}),
            "models": text.get("models", {}),
            "about": text.get("about", ""),
        }
        for name, text in texts.items()
    ]


def table_of_recipes() -> str:
    """Return a row for every ready-made recipe."""
    rows = [
        (
            row["name"],
            ", ".join(
                # What a config says is told by the recipe's page.
                word if value is None or isinstance(value, dict) else f"{word}={json.dumps(value)}"
                for word, value in row["vars"].items()
            ),
            row["about"],
        )
        for row in recipes()
    ]
    return table(("recipe", "variables", "what it does"), rows)

"""The user's JSON: variables, schema, and every mistake at once with its place."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import surgeon.merges
import surgeon.ops  # noqa: F401  (importing the packages registers the ops)
from surgeon.base import strict_json
from surgeon.base.errors import SurgeonError, UsageError, did_you_mean
from surgeon.base.files import reading
from surgeon.base.ready_made import MOST_BYTES, find, read_json
from surgeon.draft.registry import COMMON, OPS
from surgeon.recipe import torch_classes, variables
from surgeon.recipe.frame import RECIPE_SCHEMA
from surgeon.recipe.validation import problems_of
from surgeon.recipe.variables import Filled, TypedNumber
from surgeon.remote.locations import is_url, require_plain
from surgeon.remote.paths import path_of

# Of a checkpoint in a recipe's place: the bytes that tell.
_STARTS_WITHIN = 16


@dataclass(frozen=True)
class Step:
    """One item of a recipe's `steps`."""

    index: int
    op: str
    parameters: Mapping[str, Any]
    id: str | None = None
    optional: bool = False

    @property
    def place(self) -> str:
        """How errors call the step."""
        return f"steps[{self.index}] ({self.op}{f' {self.id!r}' if self.id else ''})"

    @property
    def stream(self) -> str:
        """What the step's random streams are keyed by."""
        return self.id if self.id is not None else str(self.index)


@dataclass(frozen=True)
class Recipe:
    """A recipe whose variables are filled in and whose every word is known."""

    label: str
    folder: Path
    text: Mapping[str, Any]
    sha256: str
    about: str
    variables: Mapping[str, Any]
    models: Mapping[str, str | None]
    seed: int
    steps: tuple[Step, ...]
    training: Mapping[str, Any] | None
    output: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return which recipe it is, for a document."""
        return {
            "file": self.label,
            "sha256": self.sha256,
            "about": self.about,
            "vars": dict(self.variables),
            "seed": self.seed,
        }

    @staticmethod
    def load(recipe: RecipeLike, variables: Mapping[str, Any] | None = None) -> Recipe:
        """Read, fill in and check a recipe; raises UsageError for every mistake in it."""
        return load(recipe, variables or {})


# A path, the name of a ready-made recipe, its JSON as a dict, or what was loaded already.
RecipeLike = str | os.PathLike[str] | Mapping[str, Any] | Recipe


@dataclass(frozen=True)
class Written:
    """A recipe's JSON before its variables are filled in; its paths lead from beside `path`."""

    text: Mapping[str, Any]
    path: Path
    label: str


def load(recipe: RecipeLike, overrides: Mapping[str, Any]) -> Recipe:
    """Read, fill in and check a recipe: a path, the name of a ready-made one, or a dict.

    Raises UsageError with a line for every mistake in it. A dict's paths lead from here.
    """
    if isinstance(recipe, Recipe):
        if overrides:
            raise UsageError(f"{recipe.label}: its variables have their values already")
        return recipe
    return fill_in(written(recipe), overrides)


def written(recipe: RecipeLike) -> Written:
    """Return a recipe as it is written; raises UsageError where it or its variables are none."""
    if isinstance(recipe, Recipe):
        text = {**recipe.text, "vars": dict(recipe.variables)}
        return Written(text, recipe.folder / recipe.label, recipe.label)
    if isinstance(recipe, Mapping):
        path, label = Path("recipe"), "recipe"
        text = _as_json(dict(recipe), label)
    else:
        location = os.fspath(recipe)
        path = path_of(location) if is_url(location) else find(location)
        label = path.name or str(path)
        _require_text(path, label)
        text = read_json(path, label)
    require_plain(text, label)
    try:
        # With variables still in it, only what they are substituted with can be checked.
        frame = {"type": "object", "properties": {"vars": RECIPE_SCHEMA["properties"]["vars"]}}
        problems = [f"{label}: {problem}" for problem in problems_of(text, frame, "")]
    except RecursionError:
        raise UsageError(f"{label}: nested too deeply") from None
    if problems:
        raise UsageError(*problems)
    return Written(text, path, label)


def fill_in(source: Written, overrides: Mapping[str, Any]) -> Recipe:
    """Give a recipe's variables their values and check all of it; raises as `load`."""
    text, label = source.text, source.label
    require_plain(dict(overrides), label)
    try:
        return _parse(_filled(text, overrides, label), text, source.path, label)
    except RecursionError:
        raise UsageError(f"{label}: nested too deeply") from None


def _require_text(path: Path, label: str) -> None:
    """Raise UsageError for a checkpoint in a recipe's place."""
    what = "a folder" if path.is_dir() else ""
    if path.is_file():  # a pipe might never give a byte
        with suppress(OSError), reading(path) as file:
            start = file.read(_STARTS_WITHIN)
            # A zip file, a pickle, and a safetensors header behind its length.
            if start.startswith((b"PK\x03\x04", b"\x80")) or start[4:9] == b"\0\0\0\0{":
                what = "a checkpoint"
    if what:
        raise UsageError(
            f"{label}: is {what}, not a recipe; the recipe comes first, then the input"
        )


def _as_json(value: Any, label: str) -> Any:
    """Return a value of Python as a JSON file would give it; raises UsageError where none can."""
    try:
        text = json.dumps(value).encode()
        return strict_json.parse_json(text, most_bytes=MOST_BYTES)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{label}: is not JSON: {error}") from None


def _filled(text: Mapping[str, Any], overrides: Mapping[str, Any], label: str) -> Filled:
    """Return the recipe with its variables' values, in the forms that their places want."""
    plain = _as_json(dict(overrides), f"{label}: vars")
    typed = {name: v for name, v in overrides.items() if isinstance(v, TypedNumber)}
    filled, problems = variables.fill_in(text, {**plain, **typed}, label)
    checked = partial(_checked, filled)
    if problems := [*problems, *variables.unset(filled, checked, label)]:
        raise UsageError(*problems)
    variables.fit(filled, checked)
    return filled


def _checked(filled: Filled) -> Iterator[variables.Checked]:
    """Yield the parts of a recipe that have variables, each with the schema that it has to fit."""
    if filled.places:
        yield (), filled.text, RECIPE_SCHEMA
    steps = filled.text.get("steps")
    indices = {path[1] for path in filled.places if path[0] == "steps" and len(path) > 1}
    for index, step in enumerate(steps if isinstance(steps, list) else []):
        if index in indices and isinstance(step, dict) and step.get("op") in OPS:
            with suppress(SurgeonError):  # another package's op, which is an error of its own
                yield ("steps", index), step, OPS[step["op"]].step_schema


def _parse(given: Filled, text: Mapping[str, Any], path: Path, label: str) -> Recipe:
    filled = given.text
    problems = list(problems_of(filled, RECIPE_SCHEMA, ""))
    ids: dict[str, int] = {}
    steps = filled.get("steps")
    for index, step in enumerate(steps if isinstance(steps, list) else []):
        problems += _step_problems(step, index)
        name = step.get("id") if isinstance(step, dict) else None
        if isinstance(name, str) and ids.setdefault(name, index) != index:
            problems.append(f"steps[{index}].id: '{name}' is the id of steps[{ids[name]}] already")
    if not problems and "training" in filled:
        problems += torch_classes.problems(filled["training"])
    if problems := variables.with_forms(problems, given):
        raise UsageError(*(f"{label}: {problem}" for problem in dict.fromkeys(problems)))
    resolved = {**filled, "vars": given.values}
    canonical = json.dumps(resolved, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return Recipe(
        label=label,
        folder=path.absolute().parent,
        text=text,
        sha256=hashlib.sha256(canonical.encode()).hexdigest(),
        about=filled.get("about", ""),
        variables=given.values,
        models=filled.get("models", {}),
        seed=filled.get("seed", 0),
        steps=tuple(_step(step, index) for index, step in enumerate(filled["steps"])),
        training=filled.get("training"),
        output=filled.get("output", {}),
    )


def _step(step: Mapping[str, Any], index: int) -> Step:
    parameters = {key: value for key, value in step.items() if key not in COMMON}
    return Step(index, step["op"], parameters, step.get("id"), step.get("optional", False))


def _step_problems(step: Any, index: int) -> Iterator[str]:
    """Check one step against its own op's schema."""
    place = f"steps[{index}]"
    if not isinstance(step, dict) or not isinstance(step.get("op"), str):
        # The envelope's schema has said so.
        if isinstance(step, dict) and (named := [key for key in step if key in OPS]):
            yield f'{place}: an op is named so: {{"op": "{named[0]}", ...}}'
        return
    if step["op"] not in OPS:
        hint = did_you_mean(step["op"], OPS) or "; `surgeon ops` lists them"
        yield f"{place}.op: there is no op '{step['op']}'{hint}"
        return
    try:
        schema = OPS[step["op"]].step_schema
    except SurgeonError as error:  # another package's, which cannot be had
        yield from error.at(f"{place}.op").problems
    else:
        yield from problems_of(step, schema, place)

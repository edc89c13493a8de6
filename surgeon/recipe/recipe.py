"""The user's JSON: variables, schema, and every mistake at once with its place."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import surgeon.merges
import surgeon.ops  # noqa: F401  (importing the packages registers the ops)
from surgeon.base import strict_json
from surgeon.base.errors import Hints, MissingError, SurgeonError, UsageError, did_you_mean
from surgeon.draft.registry import COMMON, OPS
from surgeon.recipe import torch_classes
from surgeon.recipe.frame import RECIPE_SCHEMA
from surgeon.recipe.validation import problems_of

# Ten times the largest recipe that a program would write.
_MOST_BYTES = 100_000_000
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")


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

    @staticmethod
    def load(recipe: RecipeLike, variables: Mapping[str, Any] | None = None) -> Recipe:
        """Read, fill in and check a recipe; raises UsageError for every mistake in it."""
        return load(recipe, variables or {})


# A path, the name of a ready-made recipe, its JSON as a dict, or what was loaded already.
RecipeLike = str | os.PathLike[str] | Mapping[str, Any] | Recipe


def read_json(path: Path, label: str) -> Any:
    """Read a JSON file strictly; raises UsageError, MissingError where there is none."""
    try:
        return strict_json.read_json(path, most_bytes=_MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingError(f"{label}: cannot be read: {error.strerror}") from None
    except OSError as error:
        raise UsageError(f"{label}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{label}: {error}") from None


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
        path = find(os.fspath(recipe))
        label = path.name
        text = read_json(path, label)
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
    try:
        filled, variables = _fill_in(text, _as_json(dict(overrides), f"{label}: vars"), label)
        return _parse(filled, variables, text, source.path, label)
    except RecursionError:
        raise UsageError(f"{label}: nested too deeply") from None


def _as_json(value: Any, label: str) -> Any:
    """Return a value of Python as a JSON file would give it; raises UsageError where none can."""
    try:
        text = json.dumps(value).encode()
        return strict_json.parse_json(text, most_bytes=_MOST_BYTES)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{label}: is not JSON: {error}") from None


def ready_made() -> dict[str, Path]:
    """Return the recipes that come with surgeon, by name."""
    beside = Path(__file__).parents[1] / "recipes"  # where a wheel puts them
    folder = beside if beside.is_dir() else Path(__file__).parents[2] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def find(location: str) -> Path:
    """Return the path of a recipe; raises UsageError where there is none."""
    if os.path.exists(location):  # noqa: PTH110 (Path.exists raises for names that are too long)
        return Path(location)
    known = ready_made()
    if location in known:
        return known[location]
    hint = did_you_mean(location, known)
    raise UsageError(f"{location}: no such recipe file{hint or '; `surgeon recipes` lists ours'}")


def _fill_in(
    text: Mapping[str, Any], overrides: Mapping[str, Any], label: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the recipe with its variables' values in their places, and the values."""
    declared = dict(text.get("vars", {}))
    problems = [
        f"{label}: --set {name}: the recipe declares no variable of that name"
        + (did_you_mean(name, declared) or f"; it declares {', '.join(declared) or 'none'}")
        for name in overrides
        if name not in declared
    ]
    values = {**declared, **overrides}
    problems += [
        f"{label}: vars.{name}: must be set; give --set {name}=VALUE"
        for name, value in values.items()
        if value is None
    ]

    hint = Hints(values)

    def fill(value: Any, place: str) -> Any:
        if isinstance(value, dict):
            return {key: fill(item, f"{place}.{key}") for key, item in value.items()}
        if isinstance(value, list):
            return [fill(item, f"{place}[{index}]") for index, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        unknown = [name for name in _VARIABLE.findall(value) if name not in values]
        for name in unknown:
            problems.append(
                f"{label}: {place.lstrip('.')}: '${{{name}}}' is not declared under 'vars'"
                + hint(name)
            )
        if unknown:
            return value
        if whole := _VARIABLE.fullmatch(value):
            return values[whole[1]]
        return _VARIABLE.sub(lambda found: _as_text(values[found[1]]), value)

    parts = ("models", "seed", "steps", "training", "output")
    filled = {key: fill(value, key) if key in parts else value for key, value in text.items()}
    if problems:
        raise UsageError(*problems)
    return filled, values


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _parse(
    filled: Mapping[str, Any],
    variables: Mapping[str, Any],
    text: Mapping[str, Any],
    path: Path,
    label: str,
) -> Recipe:
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
    if problems:
        raise UsageError(*(f"{label}: {problem}" for problem in dict.fromkeys(problems)))
    resolved = {**filled, "vars": variables}
    canonical = json.dumps(resolved, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return Recipe(
        label=label,
        folder=path.absolute().parent,
        text=text,
        sha256=hashlib.sha256(canonical.encode()).hexdigest(),
        about=filled.get("about", ""),
        variables=variables,
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
        return  # the envelope's schema has said so
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

"""Where the checkpoints and files are that a recipe names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from surgeon.base.elsewhere import Elsewhere
from surgeon.base.errors import UsageError, nearest
from surgeon.recipe.recipe import Recipe
from surgeon.remote.locations import is_url


def bind_models(recipe: Recipe, extra: Sequence[str], named: Mapping[str, str]) -> dict[str, str]:
    """Return {model name: location} from the recipe and the command line.

    Raises UsageError where a model that the recipe leaves open is not given, or where neither a
    step nor the training says a model's name.
    """
    bound: dict[str, str | None] = {}
    for name, location in recipe.models.items():
        bound[name] = beside_recipe(recipe, location) if location is not None else None
    for name, location in named.items():
        bound[name] = location
    waiting = [name for name, location in bound.items() if location is None]
    for number, location in enumerate(extra):
        name = waiting[number] if number < len(waiting) else str(number - len(waiting) + 1)
        if bound.get(name) is not None:
            raise UsageError(f"model '{name}' is given twice")
        bound[name] = location
    missing = [name for name, location in bound.items() if location is None]
    if missing:
        raise UsageError(
            *(f"model '{name}' must be given: --model {name}=PATH" for name in missing)
        )
    if unused := [name for name in bound if not _is_named(name, recipe)]:
        places = {name: bound[name] for name in unused}
        raise UsageError(
            *(
                f"{recipe.label}: model '{name}' ({place}): no step and no training section uses "
                f"it{_meant(name, str(place), recipe) or '; leave it out, or name it there'}"
                for name, place in places.items()
            )
        )
    return {name: location for name, location in bound.items() if location is not None}


def _meant(model: str, place: str, recipe: Recipe) -> str:
    """Return a hint at what an unused model was perhaps meant to be; empty without one."""
    variable = place.partition("=")[0]
    if "=" in place and variable in recipe.variables:
        return f"; did you mean --set {place}?"
    words = {word for step in recipe.steps for word in _models(step.parameters)}
    near = nearest(model, words - set(recipe.models), most=1)
    return f"; the steps name '{near[0]}': did you mean '{model}' there?" if near else ""


def _models(parameters: Mapping[str, Any]) -> Iterator[str]:
    """Yield the words that stand where a step names models."""
    for key in ("models", "model", "from", "base", "others"):
        value = parameters.get(key)
        for item in value if isinstance(value, list) else [value]:
            word = item.get("model") if isinstance(item, Mapping) else item
            yield from [word] if isinstance(word, str) else []


def _is_named(model: str, recipe: Recipe) -> bool:
    """Say whether a recipe's steps or training may mean a model: a word is it, or all are."""

    def says(value: Any) -> bool:
        if isinstance(value, str):
            return value == model or value.startswith(f"{model}:")
        if isinstance(value, Mapping):
            everyone = value.get("models") == "*"
            return everyone or any(says(item) for pair in value.items() for item in pair)
        return isinstance(value, (list, tuple)) and any(map(says, value))

    return any(says(step.parameters) for step in recipe.steps) or says(recipe.training or {})


def beside_recipe(recipe: Recipe, location: str) -> str:
    """Return where a path of the recipe leads: from the recipe's folder, else from here."""
    if is_url(location):
        return location
    place, _, inside = location.partition("#")
    for path in (recipe.folder / place, Path(place)):
        if path.exists() if isinstance(path, Elsewhere) else os.path.exists(path):  # noqa: PTH110 (Path.exists raises for names that are too long)
            return f"{path}#{inside}" if inside else str(path)
    return location

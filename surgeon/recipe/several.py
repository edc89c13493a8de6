"""Many recipes checked at once, as pipelines do: files, and all recipes of a folder.

A recipe that leaves variables open is checked with its own `example`; where that is not enough, as
it is written, with the variables in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.base.errors import UsageError
from surgeon.base.ready_made import find, read_json
from surgeon.recipe import torch_classes
from surgeon.recipe.editor_schema import recipe_schema
from surgeon.recipe.recipe import Recipe, load
from surgeon.recipe.validation import problems_of

_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")
# Where variables are filled in; see recipe.py.
_FILLED = ("models", "seed", "steps", "training", "output")


@dataclass(frozen=True)
class Checked:
    """What was found in one file; `open` are variables that a run has to give.

    `notes` say what only the training run can check.
    """

    file: str
    problems: tuple[str, ...]
    steps: int = 0
    open: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The line of a valid recipe."""
        needed = f", needs --set {', '.join(self.open)}" if self.open else ""
        return f"{self.file}: valid, {self.steps} step{'' if self.steps == 1 else 's'}{needed}"


def checked(locations: Sequence[str], variables: Mapping[str, Any]) -> list[Checked]:
    """Check recipes, and those in folders; raises UsageError for a folder that has none."""
    found = [row for location in locations for row in _at(location, variables)]
    known = {name for row in found for name in row[1].get("vars", {})}
    if unknown := [name for name in variables if name not in known]:
        raise UsageError(*(f"--set {name}: no recipe declares a variable of that name"
                           for name in unknown))  # fmt: skip
    return [_check(file, text, problems, variables) for file, text, problems in found]


Row = tuple[str, Mapping[str, Any], tuple[str, ...]]


def _at(location: str, variables: Mapping[str, Any]) -> Iterator[Row]:
    folder = Path(location)
    if not folder.is_dir():
        yield _read(find(location), location)
        return
    rows = [_read(path, str(path)) for path in _files(folder)]
    recipes = [row for row in rows if row[2] or _is_recipe(row[1])]
    if not recipes:
        raise UsageError(f"{folder}: there is no recipe in it, found {len(rows)} other JSON files")
    yield from recipes


def _files(folder: Path) -> list[Path]:
    """Return the JSON files of a folder and those below it, without hidden ones."""
    found = sorted(folder.rglob("*.json"))
    return [p for p in found if not any(x.startswith(".") for x in p.relative_to(folder).parts)]


def _read(path: Path, label: str) -> Row:
    try:
        text = read_json(path, label)
    except UsageError as error:
        return label, {}, error.problems
    return label, text if isinstance(text, dict) else {}, ()


def _is_recipe(text: Mapping[str, Any]) -> bool:
    """Say whether a JSON file is meant as a recipe: a config, a manifest or a schema is none."""
    return "surgeon" in text and ("steps" in text or "tensors" not in text)


def _check(
    file: str, text: Mapping[str, Any], problems: tuple[str, ...], overrides: Mapping[str, Any]
) -> Checked:
    if problems:
        return Checked(file, problems)
    declared = text.get("vars")
    declared = declared if isinstance(declared, dict) else {}
    example = text.get("example")
    given = {k: v for k, v in overrides.items() if k in declared}
    shown = {**(example if isinstance(example, dict) else {}), **given}
    still = [name for name, value in declared.items() if value is None and name not in given]
    try:
        if all(name in shown for name in still):
            values = {k: v for k, v in shown.items() if k in declared}
            loaded = load(text, values)
            return Checked(file, (), len(loaded.steps), tuple(still), unchecked(loaded))
    except UsageError as error:
        return Checked(file, tuple(_named(problem, file) for problem in error.problems))
    wrong = [f"{file}: {problem}" for problem in _problems_as_written(text)]
    return Checked(file, tuple(wrong), len(text.get("steps", ())), tuple(still))


def unchecked(recipe: Recipe) -> tuple[str, ...]:
    """Say which classes of a recipe only the training run can check."""
    return tuple(torch_classes.notes(recipe.training or {}))


def _named(problem: str, file: str) -> str:
    """Return a problem with the file's name in place of `recipe`, as one in memory is called."""
    return f"{file}{problem.removeprefix('recipe')}"


def _problems_as_written(text: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a recipe whose variables have no values yet."""
    yield from problems_of(text, recipe_schema(), "")
    declared = text.get("vars", {})
    for part in _FILLED:
        for name in dict.fromkeys(_VARIABLE.findall(str(text.get(part, "")))):
            if name not in declared:
                yield f"{part}: '${{{name}}}' is not declared under 'vars'"

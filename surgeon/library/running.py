"""Run a recipe, or look at what it would do: `surgeon.apply` and `surgeon.plan`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from surgeon import surgery
from surgeon.base.errors import PlanError, UsageError
from surgeon.base.units import parse_size
from surgeon.library.answers import Applied, Planned
from surgeon.output import report
from surgeon.output.execute import Options
from surgeon.output.memory import workers_within
from surgeon.output.opened import Opened
from surgeon.output.workers import default_workers
from surgeon.recipe import Recipe, RecipeLike
from surgeon.recipe.locations import bind_models

Location = str | os.PathLike[str]
# By the names that the recipe has for them, or in the order in which it leaves them open.
Models = Mapping[str, Location] | Sequence[Location] | Location


def plan(
    recipe: RecipeLike,
    input: Location,
    output: Location | None = None,
    *,
    models: Models = (),
    vars: Mapping[str, Any] | None = None,
    optimizer: Location | None = None,
    optimizer_order: Location | None = None,
    allow_code: bool = False,
    force: bool = False,
    link: bool = False,
) -> Planned:
    """Say what a recipe would make of an input; reads no tensor data.

    With `output`, whatever `apply` would refuse raises SurgeonError here. The options are those of
    `apply`.
    """
    with _opened(
        recipe, input, models, vars, optimizer, optimizer_order, allow_code=allow_code
    ) as opened:
        target = None if output is None else Path(output)
        made = surgery.output_plan(opened, target, force=force, link=link)
        return Planned(report.planned(made), **report.planned_as_json(made))


def apply(
    recipe: RecipeLike,
    input: Location,
    output: Location,
    *,
    models: Models = (),
    vars: Mapping[str, Any] | None = None,
    optimizer: Location | None = None,
    optimizer_order: Location | None = None,
    allow_code: bool = False,
    force: bool = False,
    link: bool = False,
    workers: int | None = None,
    max_memory: int | str | None = None,
    checksums: Literal["crc32", "sha256", "none"] = "crc32",
    progress: Callable[[int], None] | None = None,
) -> Applied:
    """Apply a recipe to a checkpoint; writes the output and its manifest, or nothing.

    `output` is a .safetensors file, or else a model folder. `optimizer` is where the state is that
    goes through the same surgery; "none" leaves one behind that the input holds. `force` replaces
    an output that exists, `link` shares untouched shards with the input, and `allow_code` lets
    `match` import a module. `optimizer_order` is "strict", or where a JSON list of names is for a
    state without them. `progress` is told of bytes as they are written.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"workers: {workers} is not 1 or more")
    if checksums not in ("crc32", "sha256", "none"):
        raise UsageError(f"checksums: '{checksums}' is none of crc32, sha256, none")
    began = time.monotonic()
    with _opened(
        recipe, input, models, vars, optimizer, optimizer_order, allow_code=allow_code
    ) as opened:
        count = workers or default_workers()
        if max_memory is not None:
            most = parse_size(max_memory) if isinstance(max_memory, str) else max_memory
            count = workers_within(most, opened.written_tensors, count)
        options = Options(count, checksums, progress)
        result = surgery.write(opened, Path(output), options, force=force, link=link)
        said = report.applied(result, time.monotonic() - began)
        document = report.applied_as_json(result)
    places = {"output": result.output, "manifest": result.manifest}
    return Applied("\n".join(said), **{**document, **places})


@contextmanager
def _opened(
    recipe: RecipeLike,
    input: Location,
    models: Models,
    variables: Mapping[str, Any] | None,
    optimizer: Location | None,
    order: Location | None,
    *,
    allow_code: bool,
) -> Iterator[Opened]:
    loaded = Recipe.load(recipe, variables)
    state, names = (None if path is None else os.fspath(path) for path in (optimizer, order))
    with (
        telling_of_depth(),
        surgery.opened(
            loaded, os.fspath(input), bound(loaded, models), state,
            optimizer_order=names, allow_code=allow_code,
        ) as opened,
    ):  # fmt: skip
        yield opened


def bound(recipe: Recipe, models: Models) -> dict[str, str]:
    """Return where each model of a recipe is; raises UsageError where one is missing."""
    if isinstance(models, Mapping):
        return bind_models(recipe, (), {name: os.fspath(path) for name, path in models.items()})
    several = [models] if isinstance(models, str | os.PathLike) else models
    return bind_models(recipe, [os.fspath(path) for path in several], {})


@contextmanager
def telling_of_depth() -> Iterator[None]:
    """Raise PlanError where a tensor passes through more steps than Python can follow."""
    try:
        yield
    except RecursionError:
        raise PlanError("some tensor passes through too many steps; apply them in parts") from None

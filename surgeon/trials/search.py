"""Find values for a recipe's variables by trials: `surgeon.search`, and the command's search."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from surgeon import surgery
from surgeon.base.errors import CheckFailedError, SurgeonError, UsageError
from surgeon.formats import Checkpoint, open_checkpoint
from surgeon.library.answers import Answer, Json
from surgeon.library.memory import StateDict, checkpoints_of, held
from surgeon.library.running import Location, telling_of_depth
from surgeon.output.publish import publication, writing
from surgeon.recipe import Recipe, RecipeLike, Written, fill_in, written
from surgeon.remote.locations import bare
from surgeon.trials import scores, study
from surgeon.trials.report import as_text, line_of
from surgeon.trials.scores import NoNumberError, Score
from surgeon.trials.study import Trial, Trials
from surgeon.trials.varied import Choice, Values, Varied, expand, own_value, with_values

Model = Location | StateDict
# Says where the models of a recipe are.
Bind = Callable[[Recipe], Mapping[str, str | Checkpoint]]


@dataclass(frozen=True, repr=False)
class Found(Answer):
    """The best recipe of a search, and the trials: values by what was varied, and their numbers.

    `interrupted` says that the search was ended before all of its trials.
    """

    recipe: Json
    output: Path | None
    value: float
    trial: int
    variables: Json
    trials: list[Json]
    sampler: str
    seed: int
    storage: str | None
    interrupted: bool


@dataclass(frozen=True)
class Settings:
    """How a search goes about it; `progress` is told a line for each trial."""

    trials: int
    sampler: str = "tpe"
    seed: int = 0
    output: Path | None = None
    storage: str | None = None
    resume: bool = False
    force: bool = False
    progress: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Searched:
    """A recipe whose variables are to be found, among which values, and where it starts."""

    source: Written
    variables: Mapping[str, Any]
    varied: Sequence[Varied]
    starts: Mapping[str, Any]

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe with these values; raises as loading it does."""
        return fill_in(self.source, with_values(self.variables, self.varied, values))

    def text(self, values: Mapping[str, Any]) -> Json:
        """Return the recipe as it is written, with these values in its `vars`."""
        return {**self.source.text, "vars": with_values(self.variables, self.varied, values)}

    @property
    def first(self) -> dict[str, Any]:
        """The recipe's own values; the middle of what is varied where it has none."""
        middles = {one.label: one.among.middle() for one in self.varied}
        return {**middles, **self.starts}


def search(
    recipe: RecipeLike,
    input: Model,
    *,
    models: Mapping[str, Model] | Sequence[Model] | Location = (),
    vary: Mapping[str, Values],
    evaluate: Callable[[dict[str, Any]], float],
    trials: int = 50,
    vars: Mapping[str, Any] | None = None,
    sampler: Literal["tpe", "cmaes"] = "tpe",
    seed: int = 0,
    output: Location | None = None,
    storage: str | None = None,
    resume: bool = False,
    force: bool = False,
    allow_code: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Found:
    """Find the values of a recipe's variables for which a function returns the largest number.

    `evaluate` is given what the recipe makes of the input, in memory; an exception of it is a trial
    without a number. `vary` maps variables to (low, high), to a list of choices, or to what the
    command's --vary takes. `output` is where the best recipe is written, with the trials beside it
    unless `storage` is the URL of a database. An interrupt ends the search, not what it found.
    """
    searched = prepared(recipe, vars or {}, vary)
    settings = Settings(
        trials, sampler, seed, None if output is None else Path(output), storage, resume, force,
        progress,
    )  # fmt: skip
    with ExitStack() as stack:
        if isinstance(input, Mapping):
            state_dict: StateDict = input
            source: Checkpoint = held(input)
        else:
            source = open_checkpoint(os.fspath(input))
            stack.callback(source.close)
            state_dict = scores.in_memory(source)
        score = scores.Function(evaluate, state_dict, models, allow_code)
        bind = partial(checkpoints_of, models=models)
        return run(searched, source, bind, score, settings, allow_code=allow_code)


def prepared(
    recipe: RecipeLike, variables: Mapping[str, Any], vary: Mapping[str, Values]
) -> Searched:
    """Check what is varied against a recipe and the values that its variables were given."""
    source = written(recipe)
    declared = source.text.get("vars", {})
    several = expand(vary, {**declared, **variables}, source.label)
    known = {**declared, **variables}
    starts = {one.label: own_value(one, known) for one in several}
    found = Searched(source, known, several, {k: v for k, v in starts.items() if v is not None})
    found.recipe(found.first)
    return found


def run(
    searched: Searched,
    source: str | Checkpoint,
    bind: Bind,
    score: Score,
    settings: Settings,
    *,
    command: str | None = None,
    target: Path | None = None,
    allow_code: bool = False,
) -> Found:
    """Try values until there are enough trials; write and return the best recipe.

    `bind` says where a recipe's models are, and `target` where trials write their outputs.
    Everything that does not depend on the values is checked first. Raises CheckFailedError where no
    trial gave a number, KeyboardInterrupt where none had before the search was interrupted.
    """
    if settings.trials < 1:
        raise UsageError(f"trials: {settings.trials} is not 1 or more")
    study.require(settings.sampler, searched.varied)
    first = searched.recipe(searched.first)
    kept = _planned(first, source, bind(first), target, allow_code)
    best_text = _movable(searched, settings.output, source, bind, kept, allow_code)
    about = {
        "recipe": _digest(searched),
        "ranges": {one.label: _said(one) for one in searched.varied},
        "command": command,
        "models": {name: checkpoint for name, (_, checkpoint) in kept.items()},
    }
    _require_free(settings, searched.source.path)
    storage = _storage(settings)
    name = settings.output.stem if settings.output else "search"
    with study.opened(
        name, storage, about, searched.varied, searched.starts, sampler=settings.sampler,
        seed=settings.seed, resume=settings.resume, force=settings.force, output=settings.output,
    ) as trials:  # fmt: skip
        interrupted = _search(trials, searched, score, settings, best_text)
        done = trials.done()
    best = _best(done)
    if best is None and interrupted:
        raise KeyboardInterrupt
    if best is None:
        last = done[-1].message if done else ""
        raise CheckFailedError(f"none of {len(done)} trials gave a number; the last: {last}")
    assert best.value is not None
    document: Json = {
        "recipe": best_text(best.values),
        "output": settings.output,
        "value": best.value,
        "trial": best.number,
        "variables": dict(best.values),
        "trials": [_as_json(trial) for trial in done],
        "sampler": settings.sampler,
        "seed": settings.seed,
        "storage": None if storage is None else bare(str(storage)),
        "interrupted": interrupted,
    }
    return Found(as_text(done, best, searched.varied), **document)


def _search(
    trials: Trials, searched: Searched, score: Score, settings: Settings,
    text: Callable[[Mapping[str, Any]], Json],
) -> bool:  # fmt: skip
    """Try values, and keep the best recipe on the disk; return whether it was interrupted."""
    interrupted = False
    try:
        while len(trials.done()) < settings.trials:
            trial, values = trials.ask()
            try:
                value = score(searched.recipe(values))
            except (NoNumberError, SurgeonError) as error:
                message = str(error).replace("\n", "; ")
                trials.fail(trial, message)
                tried = Trial(trial.number, values, None, message)
            except BaseException:
                trials.interrupt(trial)
                raise
            else:
                trials.tell(trial, value)
                tried = Trial(trial.number, values, value)
            best = _best(trials.done())  # of other machines too
            if settings.output and best and best.number == tried.number:
                _write(settings.output, text(values))
            if settings.progress:
                settings.progress(line_of(tried, best))
    except KeyboardInterrupt:
        interrupted = True
    # Of what other machines tried, or a run that was ended before it wrote.
    if settings.output and (best := _best(trials.done())):
        _write(settings.output, text(best.values))
    return interrupted


def _best(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the largest number, the first of them; None where none has one."""
    numbered = [trial for trial in trials if trial.value is not None]
    return max(numbered, key=lambda t: (t.value or 0.0, -t.number), default=None)


def _as_json(trial: Trial) -> Json:
    found: Json = {"trial": trial.number, "value": trial.value, "variables": dict(trial.values)}
    return {**found, "message": trial.message} if trial.message else found


def _said(one: Varied) -> str:
    return json.dumps(one.among.values) if isinstance(one.among, Choice) else str(one.among)


def _digest(searched: Searched) -> str:
    """Return what identifies a recipe but for the values that are varied."""
    text = searched.text({one.label: None for one in searched.varied})
    return hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()


def _planned(
    recipe: Recipe, source: str | Checkpoint, locations: Mapping[str, str | Checkpoint],
    target: Path | None, allow_code: bool,
) -> dict[str, tuple[Path, str]]:  # fmt: skip
    """Plan a recipe; return where its checkpoints are, and the hashes of their headers, by name."""
    with (
        telling_of_depth(),
        surgery.opened(recipe, source, locations, allow_code=allow_code) as made,
    ):
        if target is not None:
            surgery.output_plan(made, target)
        return {name: (c.path.resolve(), c.header_sha256) for name, c in made.checkpoints.items()}


def _movable(
    searched: Searched, output: Path | None, source: str | Checkpoint, bind: Bind,
    kept: Mapping[str, tuple[Path, str]], allow_code: bool,
) -> Callable[[Mapping[str, Any]], Json]:  # fmt: skip
    """Return what gives the best recipe's JSON; its paths lead from the folder of the output.

    Raises UsageError where those inside of steps would lead elsewhere.
    """
    folder = searched.recipe(searched.first).folder
    if output is None or output.absolute().parent == folder:
        return searched.text
    there = output.absolute().parent
    models = {
        name: os.path.relpath(folder / location, there)
        if location is not None and os.path.lexists(folder / location.partition("#")[0])
        else location
        for name, location in searched.source.text.get("models", {}).items()
    }

    def text(values: Mapping[str, Any]) -> Json:
        made = searched.text(values)
        return {**made, "models": models} if models else made

    moved = replace(searched, source=Written(text(searched.first), output, output.name))
    named = [location for location in models.values() if location is not None]
    try:
        recipe = moved.recipe(moved.first)
        is_same = not any("${" in location for location in named)
        is_same = is_same and _planned(recipe, source, bind(recipe), None, allow_code) == kept
    except SurgeonError:
        is_same = False
    if not is_same:
        raise UsageError(
            f"{output}: {searched.source.label} names files that lie beside it, in {folder}; write "
            "the best recipe there"
        )
    return text


def _storage(settings: Settings) -> str | Path | None:
    if settings.storage is not None or settings.output is None:
        return settings.storage
    return settings.output.absolute().with_suffix(".trials.sqlite")


def _require_free(settings: Settings, recipe: Path) -> None:
    """Raise UsageError where the best recipe may not be written."""
    output = settings.output
    if output is None:
        return
    if output.suffix != ".json":
        raise UsageError(f"{output}: the best recipe is a .json file")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"{output}: there is no folder {output.absolute().parent}")
    if output.resolve() == recipe.resolve():
        raise UsageError(f"{output}: is the recipe itself; name another file for the best one")
    beside = _storage(settings)
    for place in [output, *([beside] if isinstance(beside, Path) else [])]:
        if os.path.lexists(place) and (place.is_symlink() or not place.is_file()):
            raise UsageError(f"{place}: is no regular file, and not replaced; name another")
    if os.path.lexists(output) and not (settings.resume or settings.force):
        raise UsageError(f"{output}: exists; --resume goes on with it, --force begins anew")


def _write(output: Path, recipe: Json) -> None:
    text = json.dumps(recipe, indent=2, ensure_ascii=False) + "\n"
    with writing(output), publication(output, is_folder=False) as files:
        files.put(output.name, text)
        files.publish(None)

"""What a report tells of: the facts of a manifest, or of what `plan --json` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from surgeon.base import documents
from surgeon.lazy import TensorSpec
from surgeon.manifest.model import (
    Change,
    Manifest,
    OptimizerClass,
    RecipeEntry,
    Stage,
    TensorEntry,
)
from surgeon.numeric.dtypes import DTYPES
from surgeon.recipe import lineage
from surgeon.recipe.fates import Told, short_json

Json = Mapping[str, Any]
PLAN_SCHEMA = "urn:surgeon:plan:1"


@dataclass(frozen=True)
class Step:
    """One step of the recipe; `counts` are the tensors that it added, changed or removed."""

    step: str
    op: str
    counts: Mapping[str, int]
    about: str = ""
    into: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of an output, or of one that is planned.

    `title` is the output's name, or that of the recipe; `checks` are those that `apply` is to make.
    """

    title: str
    is_planned: bool
    about: str
    variables: Json
    recipe_sha256: str
    surgeon: str
    inputs: Mapping[str, tuple[str, int]]
    files: Sequence[tuple[str, int]]
    told: Told
    steps: Sequence[Step]
    checks: Sequence[str]
    optimizer: OptimizerClass | None
    teacher: str
    state: str
    stages: Sequence[Stage]
    config: Sequence[tuple[str, str, str]]
    carried: Sequence[str]
    notes: Sequence[str]


def of_manifest(manifest: Manifest) -> Facts:
    """Return what a manifest tells; raises ValueError for a dtype that there is not."""
    text, state, teacher = manifest.recipe.text, manifest.optimizer_state, manifest.teacher
    parts = manifest.checkpoint.parts
    return Facts(
        title=manifest.checkpoint.file,
        is_planned=False,
        about=_text(text.get("about")),
        variables=manifest.recipe.vars,
        recipe_sha256=manifest.recipe.sha256,
        surgeon=manifest.surgeon,
        inputs={name: (f.file, f.size_bytes) for name, f in manifest.inputs.items()},
        files=[(part.file, part.size_bytes) for part in parts],
        told=_told(manifest.tensors, manifest.ties, None, None),
        steps=_written_steps(manifest.recipe, manifest.tensors),
        checks=(),
        optimizer=manifest.optimizer,
        teacher=_teacher(teacher.file, teacher.temperature, teacher.weight) if teacher else "",
        state=f"{state.file}, for {len(state.parameters):,} blocks" if state else "",
        stages=manifest.stages,
        config=(),
        carried=manifest.carried,
        notes=(),
    )


def _teacher(model: str, temperature: object, weight: object) -> str:
    return f"{model}, temperature {temperature}, weight {weight}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _written_steps(recipe: RecipeEntry, tensors: Mapping[str, TensorEntry]) -> list[Step]:
    """Return the steps as they were written, and in how many tensors' lineage each is."""
    counts: Counter[str] = Counter()
    into: dict[str, str] = {}
    for entry in tensors.values():
        for change in {change.step: change for change in entry.lineage}.values():
            counts[change.step] += 1
            into.setdefault(change.step, change.into)
    found = []
    written = recipe.text.get("steps")
    for index, step in enumerate(written if isinstance(written, list) else []):
        given = step if isinstance(step, Mapping) else {}
        name = _text(given.get("id")) or str(index)
        made = {"tensors": counts[name]} if counts[name] else {}
        about = _text(given.get("about"))
        found.append(Step(name, _text(given.get("op")) or "?", made, about, into.get(name, "")))
    if counts["output"]:  # what the recipe's `output.dtype` does
        found.append(Step("output", "cast", {"tensors": counts["output"]}))
    return found


def _told(
    tensors: Mapping[str, TensorEntry],
    aliases: Mapping[str, str],
    before: Mapping[str, TensorEntry] | None,
    dropped: Sequence[str] | None,
) -> Told:
    return Told(
        {name: _spec(name, entry) for name, entry in tensors.items()},
        {name: tuple(map(_change, entry.lineage)) for name, entry in tensors.items()},
        None if before is None else {name: _spec(name, entry) for name, entry in before.items()},
        dropped,
        aliases,
    )


def _spec(name: str, entry: TensorEntry) -> TensorSpec:
    if entry.dtype not in DTYPES:
        raise ValueError(f"'{name}': there is no dtype '{entry.dtype}'")
    if min(entry.shape, default=0) < 0:
        raise ValueError(f"'{name}': there is no shape {entry.shape}")
    return TensorSpec(entry.dtype, entry.shape)


def _change(entry: Change) -> lineage.Change:
    init = (entry.init,) if isinstance(entry.init, str) else entry.init
    return lineage.Change(
        entry.step, entry.op, entry.from_, entry.new, init, entry.parameters, entry.into
    )


# What `plan --json` prints, as far as a report needs it.

_NOTHING = object()


@dataclass(frozen=True, kw_only=True)
class _PlannedRecipe:
    file: str
    sha256: str
    about: str = ""
    vars: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _PlannedStep:
    step: str
    op: str
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    notes: tuple[str, ...] = ()
    into: str = ""


@dataclass(frozen=True, kw_only=True)
class _PlannedFile:
    file: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class _PlannedTeacher:
    model: str
    temperature: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class _PlannedChange:
    key: str
    before: Any = _NOTHING
    after: Any = _NOTHING


@dataclass(frozen=True, kw_only=True)
class _PlannedState:
    place: Annotated[str, documents.Key("from")]
    parameters: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    recipe: _PlannedRecipe
    inputs: Mapping[str, _PlannedFile] = field(default_factory=dict)
    steps: tuple[_PlannedStep, ...]
    tensors: Mapping[str, TensorEntry]
    ties: Mapping[str, str]
    before: Mapping[str, TensorEntry] | None = None
    dropped: tuple[str, ...]
    files: tuple[_PlannedFile, ...]
    checks: tuple[str, ...]
    optimizer: OptimizerClass | None = None
    optimizer_state: _PlannedState | None = None
    config: tuple[_PlannedChange, ...]
    carried: tuple[str, ...]
    teacher: _PlannedTeacher | None = None
    stages: tuple[Stage, ...]
    notes: tuple[str, ...]


def of_plan(document: Mapping[str, Any]) -> Facts:
    """Return what a plan's document tells; raises ValueError where it is none."""
    known = {key: value for key, value in document.items() if value is not None}
    plan = documents.read(_Plan, known)
    state, teacher = plan.optimizer_state, plan.teacher
    return Facts(
        title=plan.recipe.file,
        is_planned=True,
        about=plan.recipe.about,
        variables=plan.recipe.vars,
        recipe_sha256=plan.recipe.sha256,
        surgeon="",
        inputs={name: (given.file, given.bytes) for name, given in plan.inputs.items()},
        files=[(file.file, file.bytes) for file in plan.files],
        told=_told(plan.tensors, plan.ties, plan.before, plan.dropped),
        steps=[_planned_step(step) for step in plan.steps],
        checks=plan.checks,
        optimizer=plan.optimizer,
        teacher=_teacher(teacher.model, teacher.temperature, teacher.weight) if teacher else "",
        state=f"{state.place}, for {len(state.parameters):,} blocks" if state else "",
        stages=plan.stages,
        config=[_config_row(change) for change in plan.config],
        carried=plan.carried,
        notes=plan.notes,
    )


def _planned_step(step: _PlannedStep) -> Step:
    counts = {"added": step.added, "changed": step.changed, "removed": step.removed}
    numbers = {word: len(names) for word, names in counts.items() if names}
    return Step(step.step, step.op, numbers, "", step.into, step.notes)


def _config_row(change: _PlannedChange) -> tuple[str, str, str]:
    """Return a key of a config, and what it was and becomes, which may be nothing."""
    both = (change.before, change.after)
    before, after = ("" if value is _NOTHING else short_json(value) for value in both)
    return change.key, before, after or "(removed)"

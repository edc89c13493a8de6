"""The manifest: what the next training run reads beside the checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from surgeon import __version__
from surgeon.base.documents import read
from surgeon.base.errors import PlanError, SurgeonError
from surgeon.base.files import sha256_of
from surgeon.base.regions import remainder, spelled
from surgeon.draft import ties
from surgeon.formats import Checkpoint
from surgeon.manifest import stages
from surgeon.manifest.model import (
    VERSION,
    Change,
    CheckpointEntry,
    Manifest,
    OptimizerClass,
    RecipeEntry,
    Stage,
    StateFile,
    Teacher,
    TensorEntry,
    WeightFile,
)
from surgeon.recipe import Recipe, lineage, torch_classes
from surgeon.recipe.plan import Plan


@dataclass(frozen=True)
class WantedTeacher:
    """A recipe's teacher: the input or a model, and the blocks of its outputs."""

    model: str
    outputs: tuple[str, ...]
    temperature: float
    weight: float


@dataclass(frozen=True)
class Training:
    """A recipe's training section, resolved against the plan."""

    optimizer: OptimizerClass | None
    teacher: WantedTeacher | None
    stages: Sequence[Stage]
    notes: tuple[str, ...] = ()


def resolve(
    recipe: Recipe, plan: Plan, source: Checkpoint, models: Mapping[str, Checkpoint]
) -> Training:
    """Resolve the training section; raises PlanError with a line for every contradiction."""
    section = recipe.training or {}
    optimizer = section.get("optimizer")
    try:
        return Training(
            read(OptimizerClass, optimizer) if optimizer else None,
            _teacher(section["teacher"], plan, models) if "teacher" in section else None,
            stages.resolve(section, plan.tensors),
            tuple(torch_classes.notes(section)),
        )
    except SurgeonError as error:
        raise error.at(f"{recipe.label}: training") from None


def _teacher(
    wanted: Mapping[str, Any], plan: Plan, models: Mapping[str, Checkpoint]
) -> WantedTeacher:
    model = wanted["model"]
    if model != "input" and model not in models:
        raise PlanError(f"teacher.model: there is no model '{model}'; say 'input' or a model")
    outputs = wanted.get("outputs") or [
        spelled(name, region, tensor.spec.shape)
        for name, tensor in plan.tensors.items()
        if (new := tensor.new_regions())
        for region in remainder(tensor.spec.shape, new)
    ]
    if not outputs:
        raise PlanError("teacher.outputs: no layer was widened; name the old outputs")
    return WantedTeacher(
        model, tuple(outputs), wanted.get("temperature", 2.0), wanted.get("weight", 1.0)
    )


def build(
    recipe: Recipe,
    plan: Plan,
    inputs: Mapping[str, Checkpoint],
    training: Training,
    *,
    checkpoint: CheckpointEntry,
    checksums: Mapping[str, str],
    optimizer_state: StateFile | None,
    carried: Collection[str],
    device: str,
) -> Manifest:
    """Return the manifest of what was written; the same for the same recipe and inputs.

    `checksums` are such as "crc32:0badcafe" by name, for tied names that of the owner. Reads the
    teacher's weight files, where there is one.
    """
    tied = ties(plan.tensors)
    return Manifest(
        version=VERSION,
        checkpoint=checkpoint,
        recipe=RecipeEntry(
            sha256=recipe.sha256, vars=dict(recipe.variables), text=dict(recipe.text)
        ),
        inputs={
            name: WeightFile(
                file=given.path.name, size_bytes=given.size_bytes, header_sha256=given.header_sha256
            )
            for name, given in inputs.items()
        },
        surgeon=__version__,
        tensors=_tensors(plan, tied, checksums),
        ties=tied,
        optimizer=training.optimizer,
        teacher=_teacher_entry(training.teacher, inputs) if training.teacher else None,
        optimizer_state=optimizer_state,
        carried=tuple(sorted(carried)),
        device=device,
        stages=tuple(training.stages),
    )


def _teacher_entry(teacher: WantedTeacher, inputs: Mapping[str, Checkpoint]) -> Teacher:
    return Teacher(
        file=inputs[teacher.model].path.name,
        sha256=sha256_of(inputs[teacher.model].weight_files),
        outputs=teacher.outputs,
        temperature=teacher.temperature,
        weight=teacher.weight,
    )


def _tensors(
    plan: Plan, tied: Mapping[str, str], checksums: Mapping[str, str]
) -> dict[str, TensorEntry]:
    # Many thousands of tensors may share a few lineages.
    lineages: dict[tuple[int, ...], tuple[Change, ...]] = {}
    entries = {}
    for name, tensor in sorted(plan.tensors.items()):
        changes = plan.lineage[name]
        key = tuple(map(id, changes))
        if key not in lineages:
            lineages[key] = tuple(map(change_entry, changes))
        spec = tensor.spec
        algorithm, _, digest = checksums.get(tied.get(name, name), "").partition(":")
        entries[name] = TensorEntry(
            shape=spec.shape,
            dtype=spec.dtype,
            crc32=digest if algorithm == "crc32" else None,
            sha256=digest if algorithm == "sha256" else None,
            lineage=lineages[key],
        )
    return entries


def change_as_json(change: lineage.Change) -> dict[str, Any]:
    """Return what `as_json` makes of a change's entry, as plans may need for 100 000 of them."""
    found: dict[str, Any] = {"step": change.step, "op": change.op}
    if change.into:
        found["into"] = change.into
    if change.from_:
        found["from"] = list(change.from_)
    if change.new:
        found["new"] = list(change.new)
    if init := change.init:
        found["init"] = init[0] if len(init) == 1 else list(init)
    if change.parameters:
        found["parameters"] = dict(change.parameters)
    return found


def change_entry(change: lineage.Change) -> Change:
    """Return a change of a plan's lineage as the manifest describes it."""
    init = change.init
    return Change(
        step=change.step,
        op=change.op,
        into=change.into,
        from_=change.from_,
        new=change.new,
        init=init[0] if len(init) == 1 else init,
        parameters=change.parameters,
    )

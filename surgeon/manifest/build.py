"""The manifest: what the next training run reads beside the checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon import __version__
from surgeon.base.errors import PlanError, SurgeonError
from surgeon.base.regions import remainder, spelled
from surgeon.draft import ties
from surgeon.formats import Checkpoint
from surgeon.manifest import stages
from surgeon.output.layout import OutputFile
from surgeon.recipe import Recipe
from surgeon.recipe.plan import Plan

VERSION = 1
Json = dict[str, Any]


@dataclass(frozen=True)
class Training:
    """A recipe's training section, resolved against the plan."""

    optimizer: Json | None
    teacher: Json | None
    stages: list[Json]


def resolve(
    recipe: Recipe, plan: Plan, source: Checkpoint, models: Mapping[str, Checkpoint]
) -> Training:
    """Resolve the training section; raises PlanError with a line for every contradiction."""
    section = recipe.training or {}
    optimizer = section.get("optimizer")
    try:
        return Training(
            {"args": {}, **optimizer} if optimizer else None,
            _teacher(section["teacher"], plan, models) if "teacher" in section else None,
            stages.resolve(section, plan.tensors),
        )
    except SurgeonError as error:
        raise error.at(f"{recipe.label}: training") from None


def _teacher(wanted: Mapping[str, Any], plan: Plan, models: Mapping[str, Checkpoint]) -> Json:
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
    settings = {key: wanted[key] for key in ("temperature", "weight") if key in wanted}
    return {"model": model, "outputs": outputs, "temperature": 2.0, "weight": 1.0, **settings}


def build(
    recipe: Recipe,
    plan: Plan,
    inputs: Mapping[str, Checkpoint],
    training: Training,
    *,
    file: str,
    files: Sequence[OutputFile],
    checksums: Mapping[str, str],
    optimizer_state: Json | None = None,
) -> Json:
    """Return the manifest of a written checkpoint; the same for the same recipe and inputs."""
    described: Json = {
        "surgeon_manifest": VERSION,
        "checkpoint": _checkpoint(file, files),
        "recipe": {
            "sha256": recipe.sha256,
            "vars": dict(recipe.variables),
            "text": recipe.text,
        },
        "inputs": {
            name: {
                "file": checkpoint.path.name,
                "bytes": checkpoint.size_bytes,
                "header_sha256": checkpoint.header_sha256,
            }
            for name, checkpoint in inputs.items()
        },
        "surgeon": __version__,
        "tensors": _tensors(plan, checksums),
        "ties": ties(plan.tensors),
    }
    if training.optimizer:
        described["optimizer"] = training.optimizer
    if training.teacher:
        teacher = dict(training.teacher)
        checkpoint = inputs[teacher.pop("model")]
        digest = _sha256_of(checkpoint.weight_files)
        described["teacher"] = {"file": checkpoint.path.name, "sha256": digest, **teacher}
    if optimizer_state:
        described["optimizer_state"] = optimizer_state
    described["stages"] = training.stages
    return described


def _checkpoint(file: str, files: Sequence[OutputFile]) -> Json:
    parts = [
        {"file": part.name, "bytes": part.size_bytes, "header_sha256": part.header_sha256}
        for part in files
    ]
    if len(parts) == 1:
        return {**parts[0], "file": file}
    joined = hashlib.sha256("".join(part.header_sha256 for part in files).encode()).hexdigest()
    size = sum(part.size_bytes for part in files)
    return {"file": file, "bytes": size, "header_sha256": joined, "files": parts}


def _tensors(plan: Plan, checksums: Mapping[str, str]) -> Json:
    aliases = ties(plan.tensors)
    described: Json = {}
    for name, tensor in sorted(plan.tensors.items()):
        entry: Json = {"shape": list(tensor.spec.shape), "dtype": tensor.spec.dtype}
        algorithm, _, digest = checksums.get(aliases.get(name, name), "").partition(":")
        if digest:
            entry[algorithm] = digest
        if changes := plan.lineage[name]:
            entry["lineage"] = [change.as_json() for change in changes]
        described[name] = entry
    return described


def _sha256_of(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def text(described: Json) -> str:
    """Return a manifest as it is written: indented, with a line for each tensor."""
    encode = json.JSONEncoder(ensure_ascii=False).encode

    def written(key: str, value: Any) -> str:
        if key == "tensors":  # json's indenting would take seconds for 100 000 of them
            rows = ",\n".join(f"  {encode(name)}: {encode(entry)}" for name, entry in value.items())
            return f"{{\n{rows}\n }}"
        return json.dumps(value, indent=1, ensure_ascii=False).replace("\n", "\n ")

    parts = [f" {encode(key)}: {written(key, value)}" for key, value in described.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"

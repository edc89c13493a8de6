"""What a model folder holds besides its weights: carried along, or left out, or followed."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.base.errors import CheckpointError, PlanError
from surgeon.base.files import is_there, link_out
from surgeon.base.strict_json import read_json
from surgeon.draft import MODEL_WEIGHTS, Tensors
from surgeon.draft.adapters import CONFIG as ADAPTER_CONFIG
from surgeon.draft.adapters import is_adapter
from surgeon.formats import Checkpoint
from surgeon.lazy import TensorSpec
from surgeon.model_folder.carried import Carry, carried
from surgeon.model_folder.chat_template import TOKENIZER_CONFIG, chat_template_files
from surgeon.model_folder.quantisation import STALE
from surgeon.recipe import Recipe
from surgeon.recipe.plan import Plan

if TYPE_CHECKING:
    from surgeon.model_folder.follow import Followed

Json = dict[str, Any]

MODEL_CONFIG = "config.json"
_GENERATION = "generation_config.json"
# Llama and Mistral as their makers store them: consolidated.00.pth, consolidated.safetensors.
_ORIGINAL, _ORIGINAL_CONFIG = "consolidated", "params.json"
# What goes with the weights as they were: the state of the run that made them, and the same weights
# in formats that surgeon does not write.
_STALE = (
    "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin", "scaler.pt", "rng_state*.pth",
    "tf_model.h5", "flax_model.msgpack", "rust_model.ot",
)  # fmt: skip


@dataclass(frozen=True)
class FolderFiles:
    """The files of a model folder that are not its weights, as they will be.

    `carried` are the input's own, by the name that they keep in the folder; `left_out` are files
    that do not go with changed weights, `followed` is the config where there is one to write, and
    `sidecars` are JSON files that a step makes. `not_carried` says what else there is, and why,
    `about_models` in what other models differ.
    """

    label: str
    carried: Mapping[str, Path]
    left_out: tuple[str, ...]
    followed: Followed | None
    sidecars: Mapping[str, Any]
    config_name: str = MODEL_CONFIG
    not_carried: tuple[str, ...] = ()
    about_models: tuple[str, ...] = ()
    # Of a tokenizer: what its files say from now on.
    tokenizer: Mapping[str, str] = field(default_factory=dict)

    @property
    def changes(self) -> list[dict[str, Any]]:
        """What changes in the config: {key, before, after} each, without what is not there."""
        return list(self.followed.changes) if self.followed else []

    @property
    def notes(self) -> list[str]:
        """What the user should know of these files."""
        notes = [*(self.followed.notes if self.followed else ()), *self.about_models]
        notes += self.not_carried
        if self.left_out:
            files = ", ".join(self.left_out)
            notes.append(f"left out, since they go with the tensors as they were: {files}")
        return notes

    def check(self) -> None:
        """Raise PlanError, with a line for each, where the config would contradict the tensors."""
        if self.followed and self.followed.problems:
            raise PlanError(*self.followed.problems).at(self.label)

    @property
    def texts(self) -> dict[str, str]:
        """What surgeon writes itself beside the weights, by name."""
        written = {
            name: json.dumps(value, indent=2, sort_keys=True) + "\n"
            for name, value in self.sidecars.items()
        }
        if self.followed and self.changes:
            written[self.config_name] = self.followed.text
        if self.followed and self.followed.generation is not None:
            text = json.dumps(self.followed.generation, indent=2, sort_keys=True) + "\n"
            written[_GENERATION] = text
        return written | dict(self.tokenizer)


def folder_files(
    recipe: Recipe,
    source: Checkpoint,
    plan: Plan,
    carry: Carry = "small",
    models: Mapping[str, Checkpoint] | None = None,
) -> FolderFiles:
    """Return what goes along with a plan's tensors into a model folder."""
    if plan.weights_file != MODEL_WEIGHTS:  # what a step made is no model's folder
        stated = recipe.output.get("config", {})
        made = {name: {**value, **stated} for name, value in plan.sidecars.items()}
        template = chat_template_files(None, recipe.output.get("chat_template"))
        return FolderFiles(recipe.label, {}, (), None, made, tokenizer=template)
    if source.folder and is_adapter(source.tensors):
        return _adapter_files(recipe, source, plan, carry)
    followed = _followed(recipe, source, plan)
    left_out = _left_out(source, plan)
    if source.folder and followed and any("after" not in change for change in followed.changes):
        left_out += tuple(name for name in STALE if (source.folder / name).is_file())
    if plan.tokens and source.folder:
        left_out += plan.tokens.left_out
    about = tuple(_about_models(source, models or {}, plan.same_vocabulary)) if followed else ()
    return replace(_along(recipe, source, plan, carry, left_out, followed), about_models=about)


def _about_models(
    source: Checkpoint, models: Mapping[str, Checkpoint], aligned: Collection[str]
) -> list[str]:
    whole = {n: m for n, m in models.items() if m.folder and not is_adapter(m.tensors)}
    if not whole:
        return []
    from surgeon.model_folder.other_models import differences

    found = {n: (m, config_of(m)) for n, m in whole.items()}
    return differences(source, config_of(source), found, aligned)


def _adapter_files(recipe: Recipe, source: Checkpoint, plan: Plan, carry: Carry) -> FolderFiles:
    """Return what goes along with an adapter's tensors: its own configuration follows them."""
    from surgeon.model_folder.adapters import followed_adapter
    from surgeon.model_folder.follow import Followed, changes_of

    old, stated = config_of(source), recipe.output.get("config", {})
    new, problems = followed_adapter(old, stated, source.tensors, plan.tensors)
    followed = Followed(new, changes_of(old, new), (), tuple(problems))
    made = _along(recipe, source, plan, carry, _left_out(source, plan), followed)
    return replace(made, config_name=ADAPTER_CONFIG)


def _along(
    recipe: Recipe,
    source: Checkpoint,
    plan: Plan,
    carry: Carry,
    left_out: tuple[str, ...],
    followed: Followed | None,
) -> FolderFiles:
    """Return what any folder gets: what is carried, and the config as it followed."""
    found = carried(source, left_out, carry)
    return FolderFiles(
        label=recipe.label,
        carried=found.files,
        not_carried=tuple(found.notes),
        left_out=left_out,
        followed=followed,
        sidecars=plan.sidecars,
        tokenizer=_tokenizer_files(recipe, source, plan),
    )


def _tokenizer_files(recipe: Recipe, source: Checkpoint, plan: Plan) -> Mapping[str, str]:
    """Return the tokenizer's files that steps, or a stated template, change."""
    made = plan.tokenizer.texts() if plan.tokenizer else {}
    template = recipe.output.get("chat_template")
    return made | chat_template_files(source.folder, template, made.get(TOKENIZER_CONFIG))


def config_of(checkpoint: Checkpoint) -> Json:
    """Return the configuration beside a checkpoint's weights; {} where there is none.

    Raises CheckpointError for one that cannot be read.
    """
    name = ADAPTER_CONFIG if is_adapter(checkpoint.tensors) else MODEL_CONFIG
    if checkpoint.folder is None and name == MODEL_CONFIG:
        if not checkpoint.path.name.startswith(_ORIGINAL):
            return {}
        name = _ORIGINAL_CONFIG
    folder = checkpoint.folder or checkpoint.path.parent
    path = folder / name
    config, problem = _read(path)
    if problem:
        raise CheckpointError(f"{path}: {problem}")
    return config


def generation_of(checkpoint: Checkpoint) -> Json:
    """Return what generation_config.json says; {} where there is none, or none that can be read."""
    return _read(checkpoint.folder / _GENERATION)[0] if checkpoint.folder else {}


def _read(path: Path) -> tuple[Json, str]:
    """Return a configuration, {} where there is none, and what is wrong with it."""
    if not is_there(path):
        return {}, ""
    if problem := link_out(path):
        return {}, problem
    try:
        config = read_json(path, allow_infinite=True)
    except OSError as error:
        return {}, f"cannot be read: {error.strerror}"
    except ValueError as error:
        return {}, str(error)
    return (config, "") if isinstance(config, dict) else ({}, "is no JSON object")


def _left_out(source: Checkpoint, plan: Plan) -> tuple[str, ...]:
    is_unchanged = not plan.dropped and not any(plan.lineage.values())
    if source.folder is None or is_unchanged:
        return ()
    stale = [
        item.name
        for item in source.folder.iterdir()
        if any(fnmatch(item.name, pattern) for pattern in _STALE) and item.is_file()
    ]
    return tuple(sorted(stale))


def _followed(recipe: Recipe, source: Checkpoint, plan: Plan) -> Followed | None:
    stated = recipe.output.get("config", {})
    path = source.folder / MODEL_CONFIG if source.folder else None
    if path is not None and not is_there(path):
        path = None
    if path is None and not stated:
        return None
    # Here, since what is known of families of models takes a while to import.
    from surgeon.model_folder.follow import Followed, combined, follow

    config, problem = _read(path) if path else ({}, "")
    if not problem:
        if path is None:
            return follow(config, stated, {}, {})
        generation, _ = _read(path.with_name(_GENERATION))
        said = combined(dict(plan.config), stated)
        return follow(config, said, source.tensors, plan.tensors, generation, plan.tokens)
    if stated:
        raise PlanError(f"{recipe.label}: output.config: {path}: {problem}")
    if _described(source.tensors) == _described(plan.tensors):
        return None
    # An error where a folder is written; one file has no config.
    hint = "what the steps did cannot be followed in it; mend it, or take it out of the folder"
    return Followed({}, (), (), (f"{path}: {problem}; {hint}",))


def _described(tensors: Tensors) -> dict[str, TensorSpec]:
    return {name: tensor.spec for name, tensor in tensors.items()}

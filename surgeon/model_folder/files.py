"""What a model folder holds besides its weights: carried along, or left out, or followed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.base.errors import PlanError
from surgeon.draft import MODEL_WEIGHTS
from surgeon.draft.adapters import CONFIG as ADAPTER_CONFIG
from surgeon.draft.adapters import is_adapter
from surgeon.formats import Checkpoint
from surgeon.model_folder.quantisation import STALE
from surgeon.recipe import Recipe
from surgeon.recipe.plan import Plan

if TYPE_CHECKING:
    from surgeon.model_folder.follow import Followed

Json = dict[str, Any]

_CONFIG = "config.json"
# What goes with the weights as they were: the state of the run that made them, and the same weights
# in formats that surgeon does not write.
_STALE = (
    "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin", "scaler.pt", "rng_state*.pth",
    "tf_model.h5", "flax_model.msgpack", "rust_model.ot",
)  # fmt: skip


@dataclass(frozen=True)
class Besides:
    """The files of a model folder that are not its weights, as they will be.

    `source` is the folder they come from, `replaced` its weight files; `left_out` are files that do
    not go with changed weights, `followed` is the config where there is one to write, and
    `sidecars` are JSON files that a step makes.
    """

    label: str
    source: Path | None
    replaced: frozenset[str]
    left_out: tuple[str, ...]
    followed: Followed | None
    sidecars: Mapping[str, Any]
    config_name: str = _CONFIG

    @property
    def changes(self) -> list[dict[str, Any]]:
        """What changes in the config: {key, before, after} each, without what is not there."""
        return list(self.followed.changes) if self.followed else []

    @property
    def notes(self) -> list[str]:
        """What the user should know of these files."""
        notes = list(self.followed.notes) if self.followed else []
        if self.left_out:
            files = ", ".join(self.left_out)
            notes.append(f"left out, since they go with the tensors as they were: {files}")
        return notes

    def check(self) -> None:
        """Raise PlanError, with a line for each, where the config would contradict the tensors."""
        if self.followed and self.followed.problems:
            raise PlanError(*self.followed.problems).at(self.label)

    def write(self, folder: Path, ours: set[str]) -> None:
        """Write these files, but those that surgeon writes itself, into an output folder."""
        for item in sorted(self.source.iterdir()) if self.source else ():
            if item.name in {*self.replaced, *self.left_out, *ours} or item.name.startswith("."):
                continue
            if item.is_dir():
                shutil.copytree(item, folder / item.name)
            else:
                shutil.copyfile(item, folder / item.name)
        if self.followed and self.changes:
            (folder / self.config_name).write_text(self.followed.text, "utf-8")
        for name, value in self.sidecars.items():
            (folder / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


def besides(recipe: Recipe, source: Checkpoint, plan: Plan) -> Besides:
    """Return what goes along with a plan's tensors into a model folder."""
    if plan.weights_file != MODEL_WEIGHTS:  # what a step made is no model's folder
        stated = recipe.output.get("config", {})
        made = {name: {**value, **stated} for name, value in plan.sidecars.items()}
        return Besides(recipe.label, None, frozenset(), (), None, made)
    if source.folder and is_adapter(source.tensors):
        return _adapter_besides(recipe, source, plan)
    followed = _followed(recipe, source, plan)
    stale = _left_out(source, plan)
    if source.folder and followed and any("after" not in change for change in followed.changes):
        stale += tuple(name for name in STALE if (source.folder / name).is_file())
    return Besides(
        label=recipe.label,
        source=source.folder,
        replaced=frozenset(path.name for path in source.weight_files),
        left_out=stale,
        followed=followed,
        sidecars=plan.sidecars,
    )


def _adapter_besides(recipe: Recipe, source: Checkpoint, plan: Plan) -> Besides:
    """Return what goes along with an adapter's tensors: its own configuration follows them."""
    from surgeon.model_folder.adapters import followed_adapter
    from surgeon.model_folder.follow import Followed, changes_of

    old, stated = config_of(source), recipe.output.get("config", {})
    new, problems = followed_adapter(old, stated, source.tensors, plan.tensors)
    followed = Followed(new, changes_of(old, new), (), tuple(problems))
    replaced = frozenset(path.name for path in source.weight_files)
    return Besides(
        recipe.label, source.folder, replaced, _left_out(source, plan), followed, plan.sidecars,
        ADAPTER_CONFIG,
    )  # fmt: skip


def config_of(checkpoint: Checkpoint) -> Json:
    """Return the configuration beside a checkpoint's weights; {} where there is none to read."""
    adapts = is_adapter(checkpoint.tensors)
    if checkpoint.folder is None and not adapts:
        return {}
    folder = checkpoint.folder or checkpoint.path.parent
    try:
        config = json.loads((folder / (ADAPTER_CONFIG if adapts else _CONFIG)).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


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
    path = source.folder / _CONFIG if source.folder else None
    if path is not None and not path.is_file():
        path = None
    if path is None and not stated:
        return None
    # Here, since what is known of families of models takes a while to import.
    from surgeon.model_folder.follow import follow

    if path is None:
        return follow({}, stated, {}, {})
    try:
        # Not read strictly: transformers writes infinities.
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        config = None
    if isinstance(config, dict):
        return follow(config, stated, source.tensors, plan.tensors)
    if stated:
        raise PlanError(f"{recipe.label}: output.config: {path} is no JSON object to merge it into")
    return None

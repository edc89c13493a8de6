"""What a run may replace: what surgeon wrote, its own input, and nothing that it reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.base.errors import SurgeonError, UsageError, listed
from surgeon.formats import Checkpoint
from surgeon.manifest.model import Manifest, read
from surgeon.manifest.names import FOLDER_MANIFEST, FOLDER_OPTIMIZER, manifest_of, optimizer_of
from surgeon.output.keeping import foreign

if TYPE_CHECKING:
    from surgeon.output.opened import Opened
    from surgeon.output.plan import OutputPlan

# What a model folder of ours may hold besides what its manifest lists: what was carried into it.
_SIDECARS = (
    "config.json", "adapter_config.json", "generation_config.json", "tokenizer.json",
    "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
    "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
# What --force-any replaces in a model folder that surgeon did not write.
_WEIGHTS = (
    "model*.safetensors", "model*.safetensors.index.json", "pytorch_model*.bin",
    "pytorch_model*.bin.index.json", "adapter_model*.safetensors", "adapter_model*.bin",
)  # fmt: skip
# Beside other weights, either would be taken for the model.
_MODELS = ("model.safetensors", "model.safetensors.index.json")


def require_apart(path: Path, opened: Opened) -> None:
    """Raise UsageError where an output is, holds or lies in what the run reads, or has no name.

    The input alone may be replaced, where it is named as the output too.
    """
    if path.name in ("", ".."):
        raise UsageError(f"'{path}': is no name for an output; name a file or a folder")
    real, source = _real(path), _real(opened.input.path)
    is_folder = path.suffix != ".safetensors"
    places = {real} if is_folder else {real, _real(manifest_of(path)), _real(optimizer_of(path))}
    for what, there in _read_by(opened):
        if there in places and not there == real == source:
            raise UsageError(f"{path}: is {what}, and only the input may be replaced in place")
        if real in there.parents:
            raise UsageError(f"{path}: holds {what}, {there}; name another output")
    for what, checkpoint in _checkpoints(opened):
        # Beside a file that was named alone, another file does no harm.
        folder = checkpoint.folder if is_folder else None
        folder = checkpoint.path if checkpoint.path.is_dir() else folder
        if folder and _real(folder) in real.parents and real != source:
            raise UsageError(f"{path}: lies inside {what}, {folder}; name an output outside of it")


def require_replaceable(path: Path, opened: Opened, *, force: bool, force_any: bool) -> None:
    """Raise UsageError where something is there that the options do not let go."""
    is_folder = path.suffix != ".safetensors"
    places = [path] if is_folder else [path, manifest_of(path), optimizer_of(path)]
    there = [place for place in places if os.path.lexists(place)]
    for place in there:
        if place.is_dir() != is_folder:
            kind = "a folder" if place.is_dir() else "a file"
            if not force and not force_any:
                raise UsageError(f"{place}: exists; --force replaces it")
            raise UsageError(f"{place}: is {kind} and cannot be replaced by the other")
    if not there or (force_any and not is_folder):
        return
    is_known = _manifest_at(path) is not None or (is_folder and not any(path.iterdir()))
    for place in there:
        if is_known or (place == path and _is_input(path, opened)):
            if not force and not force_any:
                raise UsageError(f"{place}: exists; --force replaces it")
        elif is_folder and not _is_model(path):
            raise UsageError(
                f"{place}: exists, and is no model folder, which surgeon would replace; name "
                "another output"
            )
        elif not force_any:
            where = "in" if is_folder else "beside"
            raise UsageError(
                f"{place}: exists, and no surgeon manifest stands {where} it; --force-any replaces "
                "it all the same"
            )


def with_replaced(plan: OutputPlan, *, force_any: bool) -> OutputPlan:
    """Return a folder's plan with what it replaces; raises UsageError where names collide."""
    root = _real(plan.path)
    if not plan.is_folder or not root.is_dir():
        return plan
    ours = _ours(plan, root, force_any=force_any)
    others = foreign(root, ours)
    written = {file.name for file in plan.tensor_files}
    written |= {FOLDER_MANIFEST, *(plan.texts or ()), *(plan.carried or ())}
    taken = [name for name in others if name in _MODELS or _collides(name, written)]
    if taken:
        raise UsageError(
            f"{plan.path}: {listed(taken)}: surgeon did not write them, and the output could not "
            "be told from them; move them away, or --force-any replaces weights"
        )
    if not others:
        return replace(plan, replaced=ours)
    note = f"stays in {plan.path}, since surgeon did not write it: {listed(others)}"
    return replace(plan, replaced=ours, notes=(*plan.notes, note))


def _ours(plan: OutputPlan, root: Path, *, force_any: bool) -> frozenset[str]:
    """Return the names in a folder that may go, or are written anew."""
    weights = {file.name for file in plan.weights}
    ours = {*_SIDECARS, *(plan.carried or ()), *(plan.texts or ())} - weights
    if len(plan.weights) > 1:
        ours.discard(plan.manifest.checkpoint.file)  # the index, which is the weights' too
    if manifest := _manifest_at(plan.path):
        ours |= {FOLDER_MANIFEST, FOLDER_OPTIMIZER, manifest.checkpoint.file}
        ours |= {part.file for part in manifest.checkpoint.parts}
        if manifest.optimizer_state:
            ours.add(manifest.optimizer_state.file)
    if _is_input(plan.path, plan.opened):
        files = (Path(os.path.abspath(file)) for file in plan.opened.input.weight_files)  # noqa: PTH100
        ours |= {file.name for file in files if _real(file.parent) == root}
    if force_any:
        ours |= {FOLDER_MANIFEST, FOLDER_OPTIMIZER}
        ours |= {name for name in os.listdir(root) if _is_weights(name)}  # noqa: PTH208
    return frozenset(ours)


def _collides(name: str, written: set[str]) -> bool:
    return any(
        one == name or one.startswith(f"{name}/") or name.startswith(f"{one}/") for one in written
    )


def _checkpoints(opened: Opened) -> Iterator[tuple[str, Checkpoint]]:
    yield "the input", opened.input
    for name, checkpoint in {**opened.models, **opened.outside}.items():
        yield f"model '{name}'", checkpoint


def _read_by(opened: Opened) -> Iterator[tuple[str, Path]]:
    """Yield the files and folders that a run reads, and the one that it stands in."""
    for what, checkpoint in _checkpoints(opened):
        yield what, _real(checkpoint.path)
    recipe = opened.recipe.folder / opened.recipe.label
    if recipe.exists():
        yield "the recipe", _real(recipe)
    yield "the current folder", _real(Path())


def _is_input(path: Path, opened: Opened) -> bool:
    return _real(path) == _real(opened.input.path)


def _is_model(folder: Path) -> bool:
    return any(_is_weights(name) for name in os.listdir(folder))  # noqa: PTH208


def _is_weights(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _WEIGHTS)


def _manifest_at(output: Path) -> Manifest | None:
    """Return the manifest of what is there; None where there is none that can be read."""
    try:
        return read(Manifest, manifest_of(output))
    except (SurgeonError, OSError, ValueError):
        return None


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))

"""Whether an output may be written where it is asked for: nothing is lost that is not surgeon's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from surgeon.base.elsewhere import Elsewhere
from surgeon.base.errors import SurgeonError, UsageError
from surgeon.base.files import is_there, names_in
from surgeon.formats import Checkpoint
from surgeon.formats.remains import STATE_SUFFIX
from surgeon.formats.swapping import is_remains
from surgeon.manifest.model import Manifest, read
from surgeon.manifest.names import FOLDER_MANIFEST, is_file, manifest_of, optimizer_of
from surgeon.output.opened import Opened

# What --force-any replaces in a model folder that surgeon did not write.
_WEIGHTS = (
    "model*.safetensors", "model*.safetensors.index.json", "pytorch_model*.bin",
    "pytorch_model*.bin.index.json", "adapter_model*.safetensors", "adapter_model*.bin",
)  # fmt: skip


def require_apart(path: Path, opened: Opened) -> None:
    """Raise UsageError where an output is, holds or lies in what the run reads, or has no name.

    The input alone may be replaced, where it is named as the output too.
    """
    if path.name in ("", ".."):
        raise UsageError(f"'{path}': is no name for an output; name a file or a folder")
    if is_remains(path):
        raise UsageError(f"{path}: is a name of what a killed run leaves, which goes; name another")
    if what := _named_for(path):
        raise UsageError(f"{path}: is a name for {what}; name another output")
    real, source = real_path(path), real_path(opened.input.path)
    is_folder = path.suffix != ".safetensors"
    entries = (
        {real} if is_folder else {real, real_path(manifest_of(path)), real_path(optimizer_of(path))}
    )
    for what, there in _read_by(opened):
        if there in entries and not there == real == source:
            raise UsageError(f"{path}: is {what}, and only the input may be replaced in place")
        if real in there.parents:
            raise UsageError(f"{path}: holds {what}, {there}; name another output")
    for what, checkpoint in _checkpoints(opened):
        # Beside a file that was named alone, another file does no harm.
        folder = checkpoint.folder if is_folder else None
        folder = checkpoint.path if checkpoint.path.is_dir() else folder
        if folder and real_path(folder) in real.parents and real != source:
            raise UsageError(f"{path}: lies inside {what}, {folder}; name an output outside of it")


def _named_for(path: Path) -> str:
    """Say what else a name stands for, beside or in an output; empty for one that is free."""
    if path.suffix == ".json":
        return "a manifest, an index or a config, and no model folder's"
    if path.name.endswith(STATE_SUFFIX):
        return f"the optimizer's state that goes with {path.name.removesuffix(STATE_SUFFIX)}"
    if manifest_of(path).name == FOLDER_MANIFEST and is_file(path):
        return f"what has {FOLDER_MANIFEST} as its manifest, as only a model folder does"
    return ""


def require_replaceable(path: Path, opened: Opened, *, force: bool, force_any: bool) -> None:
    """Raise UsageError where something is there that the options do not let go."""
    is_folder = path.suffix != ".safetensors"
    entries = [path] if is_folder else [path, manifest_of(path), optimizer_of(path)]
    there = [entry for entry in entries if is_there(entry)]
    for entry in there:
        if entry.is_dir() != is_folder:
            kind, other = ("a folder", "file") if entry.is_dir() else ("a file", "folder")
            if not force and not force_any:
                raise UsageError(f"{entry}: exists; --force replaces it")
            raise UsageError(
                f"{entry}: is {kind}, and this output would be a {other}, which replaces none; "
                "name another output, or remove it first"
            )
    if not there or (force_any and not is_folder):
        return
    manifest = manifest_at(path)
    is_known = manifest is not None or (is_folder and not any(path.iterdir()))
    for entry in there:
        is_strange = (
            not is_folder
            and entry == optimizer_of(path)
            and not (manifest and manifest.optimizer_state)
        )
        if (is_known and not is_strange) or (entry == path and is_input(path, opened)):
            if not force and not force_any:
                raise UsageError(f"{entry}: exists; --force replaces it")
        elif is_folder and not _is_model(path):
            raise UsageError(
                f"{entry}: exists, and is no model folder, which surgeon would replace; name "
                "another output"
            )
        elif not force_any:
            where = "names" if is_known else f"stands {'in' if is_folder else 'beside'}"
            raise UsageError(
                f"{entry}: exists, and no surgeon manifest {where} it; --force-any replaces it "
                "all the same"
            )


def _checkpoints(opened: Opened) -> Iterator[tuple[str, Checkpoint]]:
    yield "the input", opened.input
    for name, checkpoint in {**opened.models, **opened.outside}.items():
        yield f"model '{name}'", checkpoint


def _read_by(opened: Opened) -> Iterator[tuple[str, Path]]:
    """Yield the files and folders that a run reads, and the one that it stands in."""
    for what, checkpoint in _checkpoints(opened):
        yield what, real_path(checkpoint.path)
    recipe = opened.recipe.folder / opened.recipe.label
    if recipe.exists():
        yield "the recipe", real_path(recipe)
    yield "the current folder", real_path(Path())


def is_input(path: Path, opened: Opened) -> bool:
    """Say whether an output is the input itself."""
    return real_path(path) == real_path(opened.input.path)


def _is_model(folder: Path) -> bool:
    return any(is_weights(name) for name in names_in(folder))


def is_weights(name: str) -> bool:
    """Say whether a file's name is that of a model folder's weights."""
    return any(fnmatch(name, pattern) for pattern in _WEIGHTS)


def manifest_at(output: Path) -> Manifest | None:
    """Return the manifest of what is there; None where there is none that can be read."""
    try:
        return read(Manifest, manifest_of(output))
    except (SurgeonError, OSError, ValueError):
        return None


def real_path(path: Path) -> Path:
    """Return a path without links."""
    if isinstance(path, Elsewhere):
        return path
    return Path(os.path.realpath(path))

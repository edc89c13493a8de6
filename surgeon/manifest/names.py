"""Where the manifest of an output lies, and the optimizer's state that goes with it."""

from __future__ import annotations

from pathlib import Path

from surgeon.formats.remains import MANIFEST_SUFFIX, STATE_SUFFIX, WEIGHTS_SUFFIX

FOLDER_MANIFEST = "surgeon.manifest.json"
FOLDER_OPTIMIZER = "surgeon.optimizer.safetensors"
# What transformers' Trainer and accelerate write into a folder.
_TRAINERS = ("optimizer.pt", "optimizer.bin")


def is_file(output: Path) -> bool:
    """Say whether an output is one file; every other one is a model folder."""
    return output.suffix == WEIGHTS_SUFFIX


def manifest_of(output: Path) -> Path:
    """Return where the manifest of an output is written."""
    return output.with_suffix(MANIFEST_SUFFIX) if is_file(output) else output / FOLDER_MANIFEST


def optimizer_of(output: Path) -> Path:
    """Return where the optimizer's state is written that belongs to an output."""
    if is_file(output):
        return output.with_suffix(STATE_SUFFIX)
    return output / FOLDER_OPTIMIZER


def state_beside(path: Path) -> Path | None:
    """Return an optimizer's state that lies beside a checkpoint: ours, or that of its trainer."""
    found = [optimizer_of(path)]
    found += [path / name for name in _TRAINERS] if path.is_dir() else []
    return next((state for state in found if state.exists()), None)


def located(path: Path) -> Path:
    """Return the manifest of a file, of a model folder or its index, or the path if it is one."""
    if path.is_dir():
        return path / FOLDER_MANIFEST
    if path.name.endswith(f"{WEIGHTS_SUFFIX}.index.json"):
        return path.with_name(FOLDER_MANIFEST)
    if path.suffix == ".json":
        return path
    beside, in_folder = path.with_suffix(MANIFEST_SUFFIX), path.with_name(FOLDER_MANIFEST)
    return in_folder if in_folder.exists() and not beside.exists() else beside

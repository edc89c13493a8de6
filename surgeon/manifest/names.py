"""Where the manifest and the optimizer's state lie, for a file and for a model folder."""

from __future__ import annotations

from pathlib import Path

FOLDER_MANIFEST = "surgeon.manifest.json"
FOLDER_OPTIMIZER = "surgeon.optimizer.safetensors"


def manifest_beside(file: Path) -> Path:
    """Return where the manifest of a safetensors file lies."""
    return file.with_suffix(".manifest.json")


def optimizer_beside(file: Path) -> Path:
    """Return where the optimizer's state of a safetensors file lies."""
    return file.with_suffix(".optimizer.safetensors")

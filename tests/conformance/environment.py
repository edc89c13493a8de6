"""Where mergekit is installed: an environment of its own, made when it is missing."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from benchmarks import mergekit

ROOT = Path(__file__).parent.parent.parent
VARIABLE = "MERGEKIT_ENVIRONMENT"


class NotInstalledError(Exception):
    """mergekit cannot be installed; says why."""


def environment() -> Path:
    """Return an environment with mergekit; raises NotInstalledError with the reason."""
    folder = Path(os.environ.get(VARIABLE) or ROOT / ".bench" / "mergekit").absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Tests that run side by side need it at once, and only one may make it.
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if problem := mergekit.install(folder):
            raise NotInstalledError(problem)
    return folder

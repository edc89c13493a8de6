"""Where mergekit is installed: an environment of its own, made when it is missing."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from benchmarks import mergekit

_ROOT = Path(__file__).parent.parent.parent
_VARIABLE = "MERGEKIT_ENVIRONMENT"


class NotInstalledError(Exception):
    """mergekit cannot be installed; says why."""


def environment() -> Path:
    """Return an environment with mergekit; raises NotInstalledError with the reason."""
    folder = _folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Tests that run side by side need it at once, and only one may make it.
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if problem := mergekit.install(folder):
            raise NotInstalledError(problem)
    return folder


def installed() -> Path:
    """Return the environment where it is there already; a test that asks is skipped elsewhere."""
    if not (_folder() / "ready").exists():
        pytest.skip("mergekit is not installed")
    return _folder()


def _folder() -> Path:
    return Path(os.environ.get(_VARIABLE) or _ROOT / ".bench" / "mergekit").absolute()

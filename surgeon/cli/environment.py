"""The environment that surgeon was called in, for the commands that it runs."""

from __future__ import annotations

import os

# What they were before `commands` set them for our own process.
CALLERS = {
    name: os.environ.get(name)
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
}


def as_called() -> dict[str, str]:
    """Return the environment with the caller's own number of threads."""
    kept = {name: value for name, value in os.environ.items() if name not in CALLERS}
    return kept | {name: value for name, value in CALLERS.items() if value is not None}

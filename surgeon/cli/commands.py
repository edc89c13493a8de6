"""The command line as a process: what is set before anything else, and all commands."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import sys
import threading

from surgeon.cli.environment import CALLERS

# Results must not depend on the number of threads, and parallelism is ours. NumPy reads these when
# it is imported, which no line above does; what is heavy is imported by the command that needs it.
for _variable in CALLERS:
    os.environ[_variable] = "1"

# What glibc keeps of freed memory, and from where on an array is a mapping of its own (at most its
# HEAP_MAX / 2). By default kernels' arrays go back to the system after every block, and are zeroed
# for the next one: a sixth of the time of some merges.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MALLOC = {_M_TRIM_THRESHOLD: 64 << 20, _M_MMAP_THRESHOLD: 32 << 20}


# They register themselves; each imports what is heavy when it is called.
from surgeon.cli import looking, operating, reporting, searching, terminal, words  # noqa: E402, F401
from surgeon.cli.group import commands  # noqa: E402


def main() -> None:
    """Run the command line; exits the process."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        for parameter, size_bytes in _MALLOC.items():
            mallopt(parameter, size_bytes)
    # The only threads are those of a pool; what ends one is seen where its results are awaited.
    threading.excepthook = lambda about: None
    gc.disable()
    if asked := os.environ.get("_SURGEON_COMPLETE"):
        from surgeon.cli import shells

        sys.stdout.write(shells.answer(asked.partition("_")[0], commands))
        return
    # Nor at the end, where Python looks once more through everything that was imported or planned.
    atexit.register(gc.freeze)
    commands(prog_name="surgeon")

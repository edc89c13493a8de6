"""Linear algebra on one thread: NumPy's library rounds sums in another order with each number.

From about 300 rows and columns on, that is. The cores are not idle meanwhile: tensors are shared
out among workers.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import NamedTuple

from surgeon.base.deferred import np

# What OpenBLAS calls its functions, by who built it: NumPy's wheels, and systems.
_OPENBLAS = (
    "scipy_openblas_{}_num_threads64_",
    "scipy_openblas_{}_num_threads",
    "openblas_{}_num_threads64_",
    "openblas_{}_num_threads",
)
# Get, and set; MKL's C functions, and BLIS's.
_OTHERS = (
    ("MKL_Get_Max_Threads", "MKL_Set_Num_Threads"),
    ("bli_thread_get_num_threads", "bli_thread_set_num_threads"),
)
# What these libraries read when they are loaded.
VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Threads(NamedTuple):
    """The functions of a library that say how many threads it uses."""

    get: Callable[[], int]
    set: Callable[[int], object]


@lru_cache(maxsize=1)
def threads() -> Threads | None:
    """Return the functions of the library that NumPy uses; None where it has none that we know."""
    names = [(name.format("get"), name.format("set")) for name in _OPENBLAS]
    for library in _libraries():
        for get, set_ in (*names, *_OTHERS):
            if hasattr(library, get) and hasattr(library, set_):
                return Threads(getattr(library, get), getattr(library, set_))
    return None


def _libraries() -> Iterator[ctypes.CDLL]:
    """Yield what may hold them: NumPy's module finds what it was linked with, and wheels' own."""
    linalg = Path(np.linalg.__file__ or "").parent
    beside = [linalg.parent.parent / "numpy.libs", linalg.parent / ".dylibs"]
    wheels = [path for folder in beside if folder.is_dir() for path in folder.glob("*blas*")]
    for path in (*linalg.glob("_umath_linalg*"), *wheels):
        try:
            yield ctypes.CDLL(str(path))
        except OSError:  # no library, such as a file that describes one
            continue


def is_pinned() -> bool:
    """Say whether `one_thread` has an effect, or the environment says the same."""
    return threads() is not None or any(os.environ.get(name) == "1" for name in VARIABLES)


class _OneThread:
    """Counted, since the number is one for the process, whose other threads may be in here too."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._before = 1

    def __enter__(self) -> None:
        found = threads()
        if found is None:
            return
        with self._lock:
            if not self._inside:
                self._before = found.get()
                if self._before != 1:
                    found.set(1)
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        found = threads()
        if found is None:
            return
        with self._lock:
            self._inside -= 1
            if not self._inside and self._before != 1:
                found.set(self._before)


_ONE = _OneThread()


def one_thread() -> _OneThread:
    """Have linear algebra on one thread inside a `with`, and as it was after it."""
    return _ONE

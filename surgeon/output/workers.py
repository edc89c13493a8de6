"""Work shared by the cores: forked processes where there is much of it.

Threads wait for one another: each call of NumPy or of a compiled loop gives Python's lock away and
asks for it again, every few microseconds where there is no loop. With loops two threads took as
much of the processors as two processes, but longer by the clock: 7 % with an average or ties of
0.2 GB, 15 % with slerp, 34 % with dare_ties; and the one process has all the memory.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import FrameType
from typing import Any, NoReturn, TypeVar

from surgeon.base.errors import WriteError
from surgeon.remote.calls import may_fork

_In = TypeVar("_In")
_Out = TypeVar("_Out")

# With fewer bytes to read or to write, starting workers takes longer than they save.
_SHARED_FROM = 64 << 20
_PR_SET_PDEATHSIG = 1
# More workers than this wait for the memory bus or the disk.
_MOST_WORKERS = 8
# Seconds after which it is seen whether there will be an answer.
_PATIENCE = 1.0


def default_workers() -> int:
    """Return how many workers there are where nobody says: one per core, up to 8."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS
        cores = os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)


def worthwhile(workers: int, size_bytes: int) -> int:
    """Return how many of the workers there is work for, by the bytes that it is about."""
    return workers if size_bytes >= _SHARED_FROM else 1


def parallel_map(
    work: Callable[[_In], _Out], items: Sequence[_In], workers: int,
    *, apart: bool = False, patience: float = 0,
) -> Iterator[_Out]:  # fmt: skip
    """Yield results in the order of the items; the first failure ends all workers.

    Where there are several workers, `work` runs in processes that are forked here: they see
    everything that there is now, what they change stays theirs, and results are pickled. Elsewhere
    it runs in threads: what it changes must be of one thread alone. With `apart`, one worker is
    forked too, where several would be. With patience, in seconds, SystemExit is raised in a process
    whose work is not wanted any more, so that it may clean up; else it is killed at once.
    """
    workers = min(workers, len(items))
    is_forked = sys.platform == "linux" and may_fork()
    if workers <= 1 and not (workers and apart and is_forked):
        yield from map(work, items)
    elif is_forked:
        yield from _forked(work, items, workers, patience)
    else:  # system libraries, or a client, do not survive a fork, or there is none
        yield from _threaded(work, items, workers)


def _threaded(work: Callable[[_In], _Out], items: Sequence[_In], workers: int) -> Iterator[_Out]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(work, items)


class _UnattendedError(Exception):
    """Nothing hands out work to the workers, or brings back what they made."""


def _forked(
    work: Callable[[_In], _Out], items: Sequence[_In], workers: int, patience: float
) -> Iterator[_Out]:
    # Imported where there is work to share: it takes as long as opening a checkpoint.
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import active_children

    from surgeon.base.children import end_children

    others = set(active_children())  # of a program that uses the library

    done = 0
    with ExitStack() as stack:
        try:
            results = _shared(work, items, workers, stack, hears=patience > 0)
            if results is None:
                results = _threaded(work, items, workers)
            for result in results:
                yield result
                done += 1
        except _UnattendedError:  # the system gives no more processes, threads or memory
            end_children(others, patience)
            yield from map(work, items[done:])
        except BrokenProcessPool:
            raise WriteError("a worker was killed; --workers 1 takes the least memory") from None
        except BaseException:
            end_children(others, patience)
            raise


def _shared(
    work: Callable[[_In], _Out],
    items: Sequence[_In],
    workers: int,
    stack: ExitStack,
    *,
    hears: bool,
) -> Iterator[_Out] | None:
    """Fork the workers, until the stack's end, and give the results in their order.

    None where semaphores cannot be made, as in a read-only /dev/shm. _UnattendedError where there
    will be no more results.
    """
    from concurrent.futures import ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    before = set(threading.enumerate())
    with warnings.catch_warnings():
        # Threads of NumPy's and torch's libraries, which the workers do not use.
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
        arguments = work, items, os.getpid(), hears
        try:
            pool = ProcessPoolExecutor(
                workers, get_context("fork"), initializer=_begin, initargs=arguments
            )
        except (OSError, ImportError):
            return None
        try:
            futures = [pool.submit(_run, index) for index in range(len(items))]  # forks them all
        except BrokenProcessPool:
            raise
        except (OSError, RuntimeError):
            raise _UnattendedError from None
    attendants = set(threading.enumerate()) - before

    def is_attended() -> bool:
        return any(thread.is_alive() for thread in attendants)

    def results() -> Iterator[_Out]:
        for future in futures:
            # A thread of the pool that cannot start another one ends, and says so to nobody.
            while not wait([future], _PATIENCE).done:
                if not is_attended():
                    raise _UnattendedError
            yield future.result()

    stack.callback(lambda: pool.shutdown(wait=is_attended(), cancel_futures=True))
    return results()


# What a worker process is to do; set in workers alone.
_task: tuple[Callable[[Any], Any], Sequence[Any]]
_is_working = False


def _begin(work: Callable[[Any], Any], items: Sequence[Any], parent: int, hears: bool) -> None:
    global _task
    _task = work, items
    # A worker that outlived a killed run would go on writing, and hold the output's lock.
    if (control := getattr(ctypes.CDLL(None), "prctl", None)) is not None:
        control(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too
    if hears:
        signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    if not _is_working:  # nothing to clean up, and the pool would go on with the next item
        os._exit(128 + number)
    signal.signal(number, signal.SIG_IGN)  # it is told again, while it cleans up
    raise SystemExit(128 + number)


def _run(index: int) -> Any:
    global _is_working
    work, items = _task
    try:
        _is_working = True
        try:
            return work(items[index])
        finally:
            _is_working = False
    except SystemExit:  # the pool would go on with the next item
        os._exit(1)

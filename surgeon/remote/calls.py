"""In which process requests are made: never in one that is forked afterwards.

The client's threads do not survive a fork: a child that used them would wait for ever. So what
forks workers makes its own requests in helpers, which are forked before any client is made, and
each worker makes a client of its own. Where a program has loaded the client itself, requests are
made there, and work is shared by threads.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from surgeon.remote.client import Failure, environment

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor

_Out = TypeVar("_Out")
_HELPERS, _THREADS = 4, 8
_PR_SET_PDEATHSIG = 1
_CLIENT = "obstore"


class _State:
    """What this process has of its own; what it inherited of its parent is left alone."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.lock = threading.Lock()
        self.helpers: ProcessPoolExecutor | None = None
        self.is_client_here = False


_state = _State()
_pools: dict[int, ThreadPoolExecutor] = {}
_threads_lock = threading.Lock()


def run(function: Callable[..., _Out], *arguments: Any) -> _Out:
    """Run a function that makes requests, and return what it returns."""
    request = None if _is_here() else _sent(function, arguments)
    return function(*arguments) if request is None else result_of(request)


def start(function: Callable[..., _Out], *arguments: Any) -> Future[_Out]:
    """Begin as `run` does; the result can be waited for."""
    request = None if _is_here() else _sent(function, arguments)
    return _threads().submit(function, *arguments) if request is None else request


def _sent(function: Callable[..., _Out], arguments: tuple[Any, ...]) -> Future[_Out] | None:
    """Give a request to a helper; None where none can be forked."""
    from concurrent.futures.process import BrokenProcessPool

    for is_last in (False, True):
        pool = _helpers()
        if pool is None:
            return None
        try:
            return pool.submit(_in_helper, environment(), function, arguments)
        except BrokenProcessPool:  # one was killed while there was nothing to do
            _state.helpers = None
            if is_last:
                raise
    return None


def result_of(request: Future[_Out]) -> _Out:
    """Wait for what was begun. Raises Failure where the process that made the request is gone."""
    from concurrent.futures.process import BrokenProcessPool

    try:
        return request.result()
    except BrokenProcessPool:
        _state.helpers = None  # the next request has new ones
        raise Failure("unavailable", "the process that made the request was killed") from None


def _threads() -> ThreadPoolExecutor:
    """Return threads of this very process, which make its requests."""
    from concurrent.futures import ThreadPoolExecutor

    with _threads_lock:
        if os.getpid() not in _pools:
            _pools.clear()
            _pools[os.getpid()] = ThreadPoolExecutor(_THREADS, "surgeon-fetch")
        return _pools[os.getpid()]


def require_here() -> None:
    """Make requests in this process from now on, as a store in its memory needs."""
    _state.is_client_here = True


def may_fork() -> bool:
    """Say whether forked workers could make requests."""
    return not (_state.is_client_here and _state.owner == os.getpid())


def _is_here() -> bool:
    if os.getpid() != _state.owner:
        return True  # a worker: its parent has made no client
    if _CLIENT in sys.modules or sys.platform != "linux":
        _state.is_client_here = True
    return _state.is_client_here


def _helpers() -> ProcessPoolExecutor | None:
    """Return the processes that make requests for this one; None where none can be forked."""
    with _state.lock:
        if _state.helpers is None:
            is_main = threading.current_thread() is threading.main_thread()
            from concurrent.futures import ProcessPoolExecutor
            from multiprocessing import active_children, get_context

            from surgeon.base.children import end_children

            others = set(active_children())
            try:
                with warnings.catch_warnings():
                    # Threads of NumPy's and torch's libraries, which the helpers do not use.
                    warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
                    _state.helpers = ProcessPoolExecutor(
                        _HELPERS,
                        get_context("fork"),
                        initializer=_begin,
                        initargs=(os.getpid(), is_main),
                    )
                    _state.helpers.submit(int)  # forks them all
                atexit.register(_state.helpers.shutdown, cancel_futures=True)
            except (OSError, ImportError):  # no semaphores, as in a read-only /dev/shm
                _state.is_client_here = True
            except BaseException:  # a signal: nobody would tell them to end, and all wait for them
                end_children(others)
                raise
        return _state.helpers


def _in_helper(
    wanted: tuple[tuple[str, str], ...], function: Callable[..., _Out], arguments: tuple[Any, ...]
) -> _Out:
    """Run with the environment that the caller has by now."""
    if (here := environment()) != wanted:
        for name, _ in here:
            del os.environ[name]
        os.environ.update(wanted)
    return function(*arguments)


def _begin(parent: int, parent_is_main: bool) -> None:
    # The signal comes when the thread ends that forked this: of the main one alone it is wanted.
    if parent_is_main and (control := getattr(ctypes.CDLL(None), "prctl", None)) is not None:
        control(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and has to clean up

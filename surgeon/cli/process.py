"""The command line as a process: signals, streams that are closed or full, and exit codes for them.

Imports nothing that takes long, so that a signal during the imports of everything else ends in one
line too.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, TextIO

_UNWRITABLE = 5
_SIGNALLED = 128
INTERRUPTED = _SIGNALLED + 2  # SIGINT
# NumPy and its libraries alone take a third of it.
_IMPORTS_BYTES = 400 << 20
_PIPE_CLOSED = _SIGNALLED + 13  # SIGPIPE
_WORDS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "hung up",  # the terminal, or the connection to it, went away
}


class Signalled(KeyboardInterrupt):
    """A signal that ends the run, after it has cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def prepare() -> None:
    """Open what is closed of the standard streams, and turn signals into exceptions."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file that is opened would get the messages
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is sys.__stdout__:
        answers = _Answers(1, "w", closefd=False)
        sys.stdout = _text(answers, sys.stdout, is_line_buffered=answers.isatty())
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Messages(2, "w", closefd=False), sys.stderr, is_line_buffered=True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A tensor's name may hold what the terminal's encoding has no character for.
            stream.reconfigure(errors="backslashreplace")
    _listen()


class UnwritableError(OSError):
    """The answer cannot be written."""


class _Answers(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except (BrokenPipeError, BlockingIOError):
            raise
        except OSError as error:
            raise UnwritableError(error.errno, error.strerror) from None


class _Messages(io.FileIO):
    """Where messages cannot be written, the exit code says it all the same."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            return super().write(data)
        return len(data)


def _text(raw: io.FileIO, was: TextIO | None, *, is_line_buffered: bool) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(raw), getattr(was, "encoding", None) or "utf-8", "backslashreplace",
        line_buffering=is_line_buffered,
    )  # fmt: skip


def _listen() -> None:
    owner, times = os.getpid(), [0]

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            os._exit(_SIGNALLED + number)  # a worker, which has nothing to clean up
        times[0] += 1
        # A second one does not end the cleaning up; should that hang, a third does.
        if times[0] % 2:
            raise Signalled(number)

    with suppress(ValueError):  # not the main thread
        for number in _WORDS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                signal.signal(number, end)


def _finish() -> None:
    """Let no signal break in while Python ends: all is done, and the exit code is known."""
    with suppress(ValueError):
        for number in _WORDS:
            signal.signal(number, signal.SIG_IGN)


def word_of(error: KeyboardInterrupt) -> tuple[str, int]:
    """Return what is said of a signal, and the exit code."""
    number = error.number if isinstance(error, Signalled) else signal.SIGINT
    return _WORDS[signal.Signals(number)], _SIGNALLED + number


@contextmanager
def ending(*, is_last: bool = False) -> Iterator[None]:
    """Turn signals, and a stdout that takes nothing, into one line and the exit code for it.

    After the last one Python ends.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
            if is_last:
                _finish()
    except (KeyboardInterrupt, RuntimeError) as error:
        # Python before 3.12 wraps what breaks in while a class gives names to what it holds.
        signalled = error.__cause__ if isinstance(error, RuntimeError) else error
        if not isinstance(signalled, KeyboardInterrupt):
            raise
        # Where it came inside of an exec(), as of a dataclass that is being imported, python -m
        # ends with the signal instead of our code; another exec() clears that. See
        # run_eval_code_obj in https://github.com/python/cpython/blob/3.13/Python/pythonrun.c
        exec("")
        word, code = word_of(signalled)
        print(word, file=sys.stderr)
        _leave(code)
    except BrokenPipeError:
        _leave(_PIPE_CLOSED)
    except (ImportError, MemoryError, SyntaxError, SystemError):
        # What Python and its libraries make of an import that got no memory.
        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if not 0 <= most < _IMPORTS_BYTES:
            raise
        print(f"there is not enough memory: ulimit -v allows {most >> 20} MiB", file=sys.stderr)
        _leave(_UNWRITABLE)
    except UnwritableError as error:
        print(f"stdout: cannot be written: {(error.strerror or '').lower()}", file=sys.stderr)
        _leave(_UNWRITABLE)


def _leave(code: int) -> NoReturn:
    _finish()
    # Python flushes stdout once more when it ends, which must not fail again.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(code) from None

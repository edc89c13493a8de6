"""Names that change what lies at them in one step, and stay so after a power cut."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_UNFINISHED, _REPLACED = ".surgeon-unfinished", ".surgeon-replaced"
# What file systems without locks answer; EBADF is NFS's for a folder.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)
# What file systems answer that do not flush folders.
_NO_FLUSHING = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def temporary_beside(path: Path) -> Path:
    """Return where an output is written before it is complete, and its predecessor goes."""
    return path.with_name(f".{path.name}{_UNFINISHED}")


def aside_of(path: Path) -> Path:
    """Return where a predecessor lies for a moment where two names cannot change in one step."""
    return path.with_name(f".{path.name}{_REPLACED}")


def is_remains(path: Path) -> bool:
    """Say whether a name is one that `temporary_beside` or `aside_of` gives."""
    return path.name.startswith(".") and path.name.endswith((_UNFINISHED, _REPLACED))


def flush(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power cut, where the system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        if not path.is_dir():
            raise
        os.sync()  # a folder that may be written and not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSHING or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> bool:
    """Lock a file against other runs; say whether there are locks.

    BlockingIOError where another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError(error.errno, error.strerror) from None
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def swap(place: Path, temporary: Path) -> None:
    """Let what lies at two names, one of which may be free, change places; or change nothing."""
    if not os.path.lexists(temporary):
        place.rename(temporary)
    elif not os.path.lexists(place):
        temporary.rename(place)
    elif not _exchanged(temporary, place):
        _swap_by_steps(place, temporary)


def _exchanged(first: Path, second: Path) -> bool:
    """Let two names change places in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return rename is not None and rename(*names) == 0


def _swap_by_steps(place: Path, temporary: Path) -> None:
    aside = aside_of(place)
    if os.path.lexists(aside):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(aside))
    try:
        try:
            os.link(place, aside)  # so that there is something at `place` at every moment
        except OSError:
            place.rename(aside)  # a folder, or a file system without links
        temporary.rename(place)
    except BaseException:
        with suppress(OSError):
            back_from(aside, place)
        raise
    aside.rename(temporary)


def back_from(aside: Path, place: Path) -> None:
    """Undo what was begun with a predecessor that lies aside."""
    if os.path.lexists(place):
        if place.samefile(aside):
            aside.unlink()
    else:
        aside.rename(place)


def mend(place: Path) -> bool:
    """Complete or undo a swap that got stuck between two steps; say whether something is back."""
    temporary, aside = temporary_beside(place), aside_of(place)
    if not os.path.lexists(aside) or aside.lstat().st_uid != os.geteuid():
        return False
    was_missing = not os.path.lexists(place)
    if was_missing or os.path.lexists(temporary):
        back_from(aside, place)
    else:
        aside.rename(temporary)
    return was_missing

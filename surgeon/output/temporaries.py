"""Where outputs are written before they are complete: created new, locked, and nobody else's."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from pathlib import Path

from surgeon.base.errors import WriteError
from surgeon.formats.swapping import is_ours, lock, temporary_beside, tokens_beside


def open_file(path: Path, *, is_kept: bool = False) -> tuple[int, bool]:
    """Create a temporary, in place of one that a killed run of this user left; follows no link.

    One that `is_kept` is opened where it has no other name, by which it would be a file of others.
    """
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    while True:
        with suppress(FileExistsError):
            return os.open(path, flags | os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        with suppress(FileNotFoundError):  # another run finished with it
            require_ours(path, path.lstat(), stat.S_ISREG)
            if is_kept and path.lstat().st_nlink == 1:
                return os.open(path, flags | os.O_RDWR), False
            descriptor = os.open(path, flags | os.O_RDONLY)
            try:
                require_ours(path, os.fstat(descriptor), stat.S_ISREG)
                _lock(path, descriptor)
                if os.path.samestat(os.fstat(descriptor), path.lstat()):
                    path.unlink()  # never emptied: what was replaced may have other names
            finally:
                os.close(descriptor)


def open_folder(path: Path) -> tuple[int, bool]:
    """Open a temporary folder that is new, or that a killed run of this user left."""
    while True:
        is_new = False
        with suppress(FileExistsError):
            path.mkdir()
            is_new = True
        with suppress(FileNotFoundError):
            require_ours(path, path.lstat(), stat.S_ISDIR)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
            return os.open(path, flags), is_new


def require_ours(path: Path, found: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    """Raise WriteError where what lies at a temporary's name is nothing that surgeon left."""
    is_one = is_kind(found.st_mode)
    if is_one and found.st_uid == os.geteuid():
        return
    what = "is another user's" if is_one else "is a link, or no file or folder that surgeon left"
    raise WriteError(f"{path}: {what}; look at it and move it away: surgeon writes there")


def require_no_other(place: Path) -> None:
    """Raise WriteError where what a file would replace is a device, a FIFO or a folder."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(place.lstat().st_mode):
            raise WriteError(f"{place}: is no regular file, and not replaced; name another output")


def empty(folder: Path, kept: Collection[str] = ()) -> None:
    """Remove what a folder holds, but for files of the `kept` names that have no other name."""
    for item in folder.iterdir():
        status = item.lstat()
        if item.name in kept and stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            continue
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()


def clear_others(place: Path, own: str, is_kind: Callable[[int], bool]) -> None:
    """Remove what killed runs left at a place whose names cannot be guessed.

    WriteError where one of them is alive. Its run looks here too, and holds its own name by then,
    so of two at least one sees the other.
    """
    for token in tokens_beside([place]):
        name = temporary_beside(place, token)
        with suppress(FileNotFoundError):
            if token == own or not is_ours(name) or not is_kind(name.lstat().st_mode):
                continue
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(name, flags)
            try:
                _lock(name, descriptor)
                if os.path.samestat(os.fstat(descriptor), name.lstat()):
                    shutil.rmtree(name) if name.is_dir() else name.unlink()
            finally:
                os.close(descriptor)


def locked(path: Path, open_it: Callable[[], tuple[int, bool]]) -> tuple[int, bool]:
    """Open a temporary and lock it; raises WriteError where another run holds it.

    Returns also whether the file system has locks.
    """
    while True:
        descriptor, is_new = open_it()
        try:
            has_locks = _lock(path, descriptor)
        except BaseException:
            if is_new:
                with suppress(OSError):
                    path.rmdir() if path.is_dir() else path.unlink()
            os.close(descriptor)
            raise
        # The other run may have renamed or removed it between our open and our lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor, has_locks
        os.close(descriptor)


def _lock(path: Path, descriptor: int) -> bool:
    try:
        return lock(descriptor)
    except BlockingIOError:
        raise WriteError(f"{path}: another run is writing this output") from None


def hold(place: Path, stack: ExitStack) -> None:
    """Lock what is to be replaced, if possible: no run may take it for remains meanwhile."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    with suppress(OSError):
        descriptor = os.open(place, flags)
        stack.callback(os.close, descriptor)
        lock(descriptor)

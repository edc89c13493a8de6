"""Names that change what lies at them in one step, and stay so after a power cut."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_UNFINISHED, _REPLACED = ".surgeon-unfinished", ".surgeon-replaced"
_REMAINS = re.compile(
    rf"\.(?P<name>.+)({re.escape(_UNFINISHED)}|{re.escape(_REPLACED)})(?P<token>(-[0-9a-f]{{16}})?)",
    re.DOTALL,
)
# What file systems without locks answer; EBADF is NFS's for a folder.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)
# What file systems answer that do not flush folders.
_NO_FLUSHING = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def temporary_beside(path: Path, token: str = "") -> Path:
    """Return where an output is written before it is complete, and its predecessor goes.

    `token` is that of the run: see `token_in`.
    """
    return path.with_name(f".{path.name}{_UNFINISHED}{token}")


def aside_of(path: Path, token: str = "") -> Path:
    """Return where a predecessor lies for a moment where two names cannot change in one step."""
    return path.with_name(f".{path.name}{_REPLACED}{token}")


def token_in(folder: Path) -> str:
    """Return what this run's names end in: in a folder that others may put names into, secret."""
    return _own_token() if _is_shared(folder) else ""


@cache
def _own_token() -> str:
    return f"-{os.urandom(8).hex()}"


def _is_shared(folder: Path) -> bool:
    """Say whether others may put names into a folder."""
    try:
        found = folder.stat()
    except OSError:
        return False
    others = stat.S_IWGRP | stat.S_IWOTH
    return bool(found.st_mode & others) or found.st_uid not in (0, os.geteuid())


def tokens_beside(places: Iterable[Path]) -> list[str]:
    """Return the tokens of this user's runs that may have left something beside these places.

    Only folders that are shared are listed for them.
    """
    tokens = {""}
    names: dict[Path, set[str]] = {}
    for place in places:
        names.setdefault(place.parent, set()).add(place.name)
    for folder in filter(_is_shared, names):
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                found = _REMAINS.fullmatch(entry.name) if entry.name[0] == "." else None
                if found and found["name"] in names[folder] and is_ours(Path(entry.path)):
                    tokens.add(found["token"])
    return sorted(tokens)


def is_ours(path: Path) -> bool:
    """Say whether something is there that is this user's, and no link."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return found.st_uid == os.geteuid() and not stat.S_ISLNK(found.st_mode)


def is_remains(path: Path) -> bool:
    """Say whether a name is one that `temporary_beside` or `aside_of` gives."""
    return _REMAINS.fullmatch(path.name) is not None


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


def swap(place: Path, token: str = "") -> None:
    """Let a place and its temporary, one of which may be free, change places; or change nothing."""
    temporary = temporary_beside(place, token)
    if not os.path.lexists(temporary):
        place.rename(temporary)
    elif not os.path.lexists(place):
        temporary.rename(place)
    elif not _exchanged(temporary, place):
        _swap_by_steps(place, temporary, aside_of(place, token))


def _exchanged(first: Path, second: Path) -> bool:
    """Let two names change places in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return rename is not None and rename(*names) == 0


def _swap_by_steps(place: Path, temporary: Path, aside: Path) -> None:
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
    try:
        aside.rename(temporary)
    except BaseException:
        with suppress(OSError):
            place.rename(temporary)
            aside.rename(place)
        raise


def back_from(aside: Path, place: Path) -> None:
    """Undo what was begun with a predecessor that lies aside."""
    if os.path.lexists(place):
        if place.samefile(aside):
            aside.unlink()
    else:
        aside.rename(place)


def mend(place: Path, token: str = "") -> bool:
    """Complete or undo a swap that got stuck between two steps; say whether something is back."""
    temporary, aside = temporary_beside(place, token), aside_of(place, token)
    if not is_ours(aside):
        return False
    was_missing = not os.path.lexists(place)
    if was_missing or os.path.lexists(temporary):
        back_from(aside, place)
    else:
        aside.rename(temporary)
    return was_missing

"""Outputs that appear complete or not at all.

Everything is written to a temporary sibling of a fixed, telling name, which the run holds locked,
flushed to the disk, and only then renamed into place. What was there before stays until then. A
killed run leaves at most that sibling, and the next run into the same output removes it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from surgeon.base.errors import WriteError
from surgeon.formats.files import InputFile
from surgeon.output.keeping import keep

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_FICLONE = 0x40049409


def temporary_beside(path: Path) -> Path:
    """Return where an output is written before it is complete."""
    return path.with_name(f".{path.name}.surgeon-unfinished")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn whatever the operating system refuses into a WriteError that names the output."""
    try:
        yield
    except OSError as error:
        where = (
            f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
        )
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise WriteError(f"{path}: cannot be written: {reason.lower()}{where}") from None


def _locked(path: Path, open_it: Callable[[], int]) -> int:
    """Open a temporary and lock it; raises WriteError where another run holds it."""
    while True:
        descriptor = open_it()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise WriteError(f"{path}: another run is writing this output") from None
        # The other run may have renamed or removed it between our open and our lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor
        os.close(descriptor)


def flush(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Unit(Protocol):
    """The files of one output, written out of sight, that then appear together."""

    def descriptor(self, name: str) -> int:
        """Return what a file is written through; it is empty unless it was linked."""
        ...

    def put(self, name: str, text: str) -> None:
        """Write a small file whole."""
        ...

    def carry(self, source: Path, name: str) -> None:
        """Copy a file of the input; `name` may lie in subfolders."""
        ...

    def link(self, source: InputFile, name: str) -> bool:
        """Make a file share an input's bytes on the disk; say whether it could be done."""
        ...

    def publish(self, obsolete: Path | None) -> None:
        """Have everything appear; what is obsolete goes last."""
        ...


@contextmanager
def unit(path: Path, is_folder: bool, replaced: Collection[str] = ()) -> Iterator[Unit]:
    """Give what an output's files are written into; nothing appears unless it is published.

    `replaced` are the names that may go from a folder that is there.
    """
    with ExitStack() as stack:
        if is_folder:
            temporary, publish = stack.enter_context(folder(path, replaced))
            yield _FolderUnit(temporary, publish, stack)
        else:
            yield _FileUnit(path.parent, stack)


class _FileUnit:
    """Files that lie side by side, each of which is renamed into place."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._publishing: list[Callable[[], None]] = []

    def descriptor(self, name: str) -> int:
        descriptor, publish = self._stack.enter_context(file(self._folder / name))
        # The first file is the model's: by then, whatever goes with it is there.
        self._publishing.append(publish)
        return descriptor

    def put(self, name: str, text: str) -> None:
        descriptor = self.descriptor(name)
        _write_text(descriptor, text)
        os.fsync(descriptor)  # whatever can fail does so before the output is replaced

    def carry(self, source: Path, name: str) -> None:
        with (
            source.open("rb") as original,
            open(self.descriptor(name), "wb", closefd=False) as copy,
        ):
            shutil.copyfileobj(original, copy)

    def link(self, source: InputFile, name: str) -> bool:
        return False  # each is renamed by itself, out of a file that is locked

    def publish(self, obsolete: Path | None) -> None:
        *tensors, manifest = self._publishing
        for publish_one in [*reversed(tensors), manifest]:
            publish_one()
        # Last: a run that is killed before has lost nothing, and the new manifest names no state.
        if obsolete:
            remove(obsolete)


class _FolderUnit:
    """A folder that takes the place of another in one step."""

    def __init__(self, folder: Path, publish: Callable[[], None], stack: ExitStack) -> None:
        self._folder = folder
        self._publish = publish
        self._stack = stack

    def descriptor(self, name: str) -> int:
        path = self._folder / name
        mode = "rb" if path.exists() else "xb+"
        return self._stack.enter_context(path.open(mode, buffering=0)).fileno()

    def put(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text, "utf-8", "backslashreplace")

    def carry(self, source: Path, name: str) -> None:
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)

    def link(self, source: InputFile, name: str) -> bool:
        return link(source, self._folder / name)

    def publish(self, obsolete: Path | None) -> None:
        self._publish()


def _write_text(descriptor: int, text: str) -> None:
    # A file's name may hold bytes that are not UTF-8; what replaces them is JSON's escape of them.
    with open(descriptor, "w", -1, "utf-8", "backslashreplace", closefd=False) as handle:
        handle.write(text)


@contextmanager
def file(path: Path) -> Iterator[tuple[int, Callable[[], None]]]:
    """Give a descriptor to write a file through, and what publishes it once it is complete.

    Nothing is published where the body raises or never asks for it.
    """
    path = Path(os.path.realpath(path))
    temporary = temporary_beside(path)
    descriptor = _locked(temporary, lambda: _open_file(temporary))

    def publish() -> None:
        os.fsync(descriptor)
        temporary.replace(path)
        flush(path.parent)

    try:
        os.ftruncate(descriptor, 0)
        yield descriptor, publish
    finally:
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), temporary.lstat()):
                temporary.unlink()
        os.close(descriptor)


@contextmanager
def folder(path: Path, replaced: Collection[str] = ()) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Give an empty folder to write into, and what publishes it in place of `path`.

    What is there and not `replaced` stays: the new folder gets it too, before the two are swapped.
    """
    path = Path(os.path.realpath(path))
    temporary = temporary_beside(path)

    descriptor = _locked(temporary, lambda: _open_folder(temporary))
    published = False

    def publish() -> None:
        nonlocal published
        for item in temporary.rglob("*"):
            flush(item)
        if path.exists():
            keep(path, temporary, replaced)
        flush(temporary)
        if path.exists():
            _exchange(temporary, path)
            flush(path.parent)
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.rename(path)
            flush(path.parent)
        published = True

    try:
        _empty(temporary)
        yield temporary, publish
    finally:
        if not published:
            shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)


def link(source: InputFile, path: Path) -> bool:
    """Make `path` a file that shares an input's bytes on the disk; say whether it could be done.

    That is a copy of which blocks are only stored anew once they change, where the file system has
    such copies (reflinks), else the same file under another name (a hard link).
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with source.descriptor() as number:
            fcntl.ioctl(descriptor, _FICLONE, number)
        return True
    except OSError:
        path.unlink()
    finally:
        os.close(descriptor)
    # Not every system allows it, nor for every file.
    with suppress(OSError):
        os.link(os.path.realpath(source.path), path)
        with source.descriptor() as number:
            is_same = os.path.samestat(os.fstat(number), path.stat())
        if is_same:
            return True
        path.unlink()  # the input is another file by now
    return False


def remove(path: Path) -> None:
    """Remove what an earlier run left beside an output that is complete by now."""
    if not path.exists() and not path.is_symlink():
        return
    try:
        path.unlink()
        flush(path.parent)
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise WriteError(
            f"{path}: is of an earlier run, and cannot be removed: {reason}; everything else is "
            "complete, and its manifest does not name this file"
        ) from None


def _open_file(path: Path) -> int:
    """Open a temporary that is new, or that a killed run of this user left; follows no link."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    while True:
        with suppress(FileExistsError):
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(FileNotFoundError):  # another run finished with it
            _require_ours(path, path.lstat(), stat.S_ISREG)
            descriptor = os.open(path, flags)
            try:
                _require_ours(path, os.fstat(descriptor), stat.S_ISREG)
            except BaseException:
                os.close(descriptor)
                raise
            return descriptor


def _open_folder(path: Path) -> int:
    """Open a temporary folder that is new, or that a killed run of this user left."""
    while True:
        with suppress(FileExistsError):
            path.mkdir()
        with suppress(FileNotFoundError):
            _require_ours(path, path.lstat(), stat.S_ISDIR)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
            return os.open(path, flags)


def _require_ours(path: Path, found: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    """Raise WriteError where what lies at a temporary's name is nothing that surgeon left."""
    is_one = is_kind(found.st_mode) and (stat.S_ISDIR(found.st_mode) or found.st_nlink <= 1)
    # A file of no name any more is one that another run has just published or removed.
    if is_one and found.st_uid == os.geteuid():
        return
    what = "is another user's" if is_one else "is a link, or no file or folder that surgeon left"
    raise WriteError(f"{path}: {what}; look at it and move it away: surgeon writes there")


def _empty(folder: Path) -> None:
    for item in folder.iterdir():
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()


def _exchange(ours: Path, theirs: Path) -> None:
    """Swap two folders in one step, where the system can; else move the old one aside first."""
    library = ctypes.CDLL(None, use_errno=True)
    rename = getattr(library, "renameat2", None)
    names = (_AT_FDCWD, os.fsencode(ours), _AT_FDCWD, os.fsencode(theirs), _RENAME_EXCHANGE)
    if rename is not None and rename(*names) == 0:
        return
    aside = theirs.with_name(f".{theirs.name}.surgeon-replaced")
    if os.path.lexists(aside):
        raise WriteError(f"{aside}: is in the way, perhaps an earlier output; move it away")
    theirs.rename(aside)
    try:
        ours.rename(theirs)
    except OSError:
        aside.rename(theirs)
        raise
    aside.rename(ours)

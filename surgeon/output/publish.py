"""Outputs that appear complete or not at all.

Everything is written to temporary siblings of telling names, which the run holds locked, flushed
to the disk, and only then swapped into place, name by name: the manifest first, which names what
follows, the weights last. What was there before lies at those siblings until all is in place. A
killed run leaves at most them; `formats.remains` finishes what had begun to appear, and the next
run into the same output removes the rest.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from surgeon.base.elsewhere import Elsewhere
from surgeon.base.errors import WriteError
from surgeon.base.files import reading
from surgeon.formats.files import InputFile
from surgeon.formats.remains import places_of
from surgeon.formats.swapping import flush, mend, swap, temporary_beside, token_in
from surgeon.output.keeping import keep, keep_rights
from surgeon.output.temporaries import (
    clear_others,
    empty,
    hold,
    locked,
    open_file,
    open_folder,
    require_no_other,
    require_ours,
)

_FICLONE = 0x40049409
_NO_LOCKS = (
    "the output's file system has no locks: another run into the same output would go unnoticed"
)


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


class Publication(Protocol):
    """The files of one output, written out of sight, that then appear together."""

    def descriptor(self, name: str) -> int:
        """Return what a file is written through; it is empty unless it was linked."""
        ...

    def path(self, name: str) -> Path:
        """Return where a file is written by whoever opens it; it is there, or its folder is."""
        ...

    def rest(self) -> None:
        """Close what was written so far, if it may be closed already."""
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
        """Have everything appear, and what is obsolete go."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know of the place that is written to."""
        ...


@contextmanager
def publication(
    path: Path, is_folder: bool, replaced: Collection[str] = (), kept: Collection[str] | None = None
) -> Iterator[Publication]:
    """Give what an output's files are written into; nothing appears unless it is published.

    `replaced` are the names that may go from a folder that is there. Files of the `kept` names are
    those that an earlier run left there; where they are given, be it none, what this one leaves
    unpublished stays too.
    """
    with ExitStack() as stack:
        if is_folder:
            made = stack.enter_context(_folder(path, replaced, kept))
            yield _FolderPublication(made, stack)
        else:
            made_files = _Files(kept)
            stack.callback(made_files.close)
            yield _FilePublication(path.parent, made_files)


class _Files:
    """Files that are written out of sight, each beside its place, and swapped into it."""

    def __init__(self, kept: Collection[str] | None = None) -> None:
        self.has_locks = True
        self._kept = kept
        self._is_published = False
        self._stack = ExitStack()
        self._written: list[tuple[Path, int]] = []
        # Names that are swept in the end: what is not published, or what was replaced.
        self._swept: list[Path] = []
        self._tokens: dict[Path, str] = {}
        self._is_stuck = False

    def token_in(self, folder: Path) -> str:
        """Return what the run's names end in there; a run that goes on with it has to find them."""
        return token_in(folder) if self._kept is None else ""

    def open(self, place: Path) -> int:
        """Return a descriptor to write a file through that is to lie at `place`."""
        place = Path(os.path.realpath(place))
        require_no_other(place)
        token = self.token_in(place.parent)
        temporary = temporary_beside(place, token)
        is_kept = place.name in (self._kept or ())
        descriptor, has_locks = locked(temporary, lambda: open_file(temporary, is_kept=is_kept))
        self._stack.callback(os.close, descriptor)
        self._tokens[place] = token
        self._swept.append(temporary)
        clear_others(place, token, stat.S_ISREG)
        self._written.append((place, descriptor))
        self.has_locks &= has_locks
        return descriptor

    def publish(self, obsolete: Path | None = None) -> None:
        """Have all files appear, the last first; what is obsolete goes before the first appears.

        Everything is flushed before; where a swap fails, those before it are undone.
        """
        weights, *others = self._written
        for place, written in self._written:
            # A manifest or a state that is new is as private as the weights are.
            keep_rights(place if place.exists() else weights[0], written)
            os.fsync(written)
        places: list[tuple[Path, int | None]] = [*reversed(others), weights]
        if obsolete and os.path.lexists(obsolete):
            place = Path(os.path.realpath(obsolete))
            self._tokens[place] = token_in(place.parent)
            places.insert(-1, (place, None))
        for place, _ in places:
            hold(place, self._stack)
        folders = {place.parent for place, _ in places}
        for folder in folders:
            flush(folder)  # what a manifest names is there when the manifest is
        try:
            for place, _ in places:
                swap(place, self._tokens[place])
            for folder in folders:
                flush(folder)
        except BaseException:
            self._is_stuck = True
            for place, descriptor in reversed(places):
                _unswap(place, descriptor, self._tokens[place])
            self._is_stuck = False
            raise
        self._is_published = True
        # A killed run may have left some that this one has no use for.
        for place in places_of(weights[0]):
            token = self.token_in(place.parent)
            self._swept.append(temporary_beside(place, token))
            with suppress(OSError, WriteError):
                clear_others(place, token, stat.S_ISREG)

    def close(self) -> None:
        """Remove what lies beside the places; the first, which tells of a run, goes last."""
        if not self._is_stuck and (self._is_published or self._kept is None):
            for temporary in sorted(set(self._swept), key=self._swept.index, reverse=True):
                with suppress(OSError, WriteError):
                    require_ours(temporary, temporary.lstat(), stat.S_ISREG)
                    temporary.unlink()
        self._stack.close()


def _unswap(place: Path, descriptor: int | None, token: str) -> None:
    """Undo a swap if it happened; what was written is known by its descriptor."""
    mend(place, token)
    temporary = temporary_beside(place, token)
    is_there = os.path.lexists(place)
    if descriptor is None:
        is_swapped = not is_there and os.path.lexists(temporary)
    else:
        is_swapped = is_there and os.path.samestat(os.fstat(descriptor), place.lstat())
    if is_swapped:
        swap(place, token)


class _FilePublication:
    """Files that lie side by side: the weights, an optimizer's state, the manifest."""

    def __init__(self, folder: Path, files: _Files) -> None:
        self._folder = folder
        self._files = files

    @property
    def notes(self) -> list[str]:
        return [] if self._files.has_locks else [_NO_LOCKS]

    def descriptor(self, name: str) -> int:
        return self._files.open(self._folder / name)

    def path(self, name: str) -> Path:
        self.descriptor(name)
        return temporary_beside(Path(os.path.realpath(self._folder / name)))

    def rest(self) -> None:
        """There are few, and they stay locked."""

    def put(self, name: str, text: str) -> None:
        _write_text(self.descriptor(name), text)

    def carry(self, source: Path, name: str) -> None:
        with (
            reading(source) as original,
            open(self.descriptor(name), "wb", closefd=False) as copy,
        ):
            shutil.copyfileobj(original, copy)

    def link(self, source: InputFile, name: str) -> bool:
        return False  # each is renamed by itself, out of a file that is locked

    def publish(self, obsolete: Path | None) -> None:
        self._files.publish(obsolete)


class _FolderPublication:
    """A folder that takes the place of another in one step."""

    def __init__(self, made: _Folder, stack: ExitStack) -> None:
        self._folder = made.temporary
        self._publish = made.publish
        self._open = stack.enter_context(ExitStack())
        self.notes = [] if made.has_locks else [_NO_LOCKS]

    def descriptor(self, name: str) -> int:
        path = self._folder / name
        mode = "rb" if path.exists() else "xb+"
        return self._open.enter_context(path.open(mode, buffering=0)).fileno()

    def path(self, name: str) -> Path:
        return self._folder / name

    def rest(self) -> None:
        self._open.close()

    def put(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text, "utf-8", "backslashreplace")

    def carry(self, source: Path, name: str) -> None:
        target = self._folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(source, Elsewhere):
            shutil.copyfile(source, target)
            return
        with reading(source) as original, target.open("xb") as copy:
            shutil.copyfileobj(original, copy)

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
    files = _Files()
    try:
        yield files.open(path), files.publish
    finally:
        files.close()


@dataclass(frozen=True)
class _Folder:
    """A folder to write into, and what publishes it."""

    temporary: Path
    publish: Callable[[], None]
    has_locks: bool


@contextmanager
def folder(path: Path, replaced: Collection[str] = ()) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Give an empty folder to write into, and what publishes it in place of `path`.

    What is there and not `replaced` stays: the new folder gets it too, before the two are swapped.
    """
    with _folder(path, replaced) as made:
        yield made.temporary, made.publish


@contextmanager
def _folder(
    path: Path, replaced: Collection[str], kept: Collection[str] | None = None
) -> Iterator[_Folder]:
    path = Path(os.path.realpath(path))
    token = token_in(path.parent) if kept is None else ""
    temporary = temporary_beside(path, token)
    descriptor, has_locks = locked(temporary, lambda: open_folder(temporary))
    is_stuck = is_published = False

    def publish() -> None:
        nonlocal is_stuck, is_published
        for item in temporary.rglob("*"):
            keep_rights(path / item.relative_to(temporary), item)
            flush(item)
        keep_rights(path, temporary)
        if path.exists():
            keep(path, temporary, replaced)
            hold(path, stack)
        flush(temporary)
        swap(path, token)
        try:
            flush(path.parent)
        except BaseException:
            is_stuck = True
            swap(path, token)
            is_stuck = False
            raise
        is_published = True

    with ExitStack() as stack:
        stack.callback(os.close, descriptor)
        try:
            clear_others(path, token, stat.S_ISDIR)
            empty(temporary, kept or ())
            yield _Folder(temporary, publish, has_locks)
        finally:
            if not is_stuck and (is_published or kept is None):
                shutil.rmtree(temporary, ignore_errors=True)


def link(source: InputFile, path: Path) -> bool:
    """Make `path` a file that shares an input's bytes on the disk; say whether it could be done.

    That is a copy of which blocks are only stored anew once they change, where the file system has
    such copies (reflinks), else the same file under another name (a hard link).
    """
    if isinstance(source.path, Elsewhere):
        return False
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

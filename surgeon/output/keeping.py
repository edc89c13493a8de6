"""What lies in a folder that is replaced, and is not surgeon's: it stays."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from surgeon.base.elsewhere import Elsewhere
from surgeon.base.files import names_in

# In object storage, where files wait that will take the place of others.
WAITING = ".surgeon-waiting"


def foreign(folder: Path, ours: Collection[str]) -> list[str]:
    """List what lies in a folder besides `ours`: files, and folders that hold nothing of ours.

    All paths are relative to the folder. Links are not followed.
    """
    if isinstance(folder, Elsewhere):
        return _foreign_elsewhere(folder, ours)
    above = {str(parent) for name in ours for parent in Path(name).parents}
    found: list[str] = []

    def look(inside: str) -> None:
        with os.scandir(folder / inside) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = os.path.join(inside, entry.name)  # noqa: PTH118 (names, not paths)
                if name in above and entry.is_dir(follow_symlinks=False):
                    look(name)
                elif name not in ours or entry.is_dir(follow_symlinks=False):
                    found.append(name)

    look("")
    return found


def _foreign_elsewhere(folder: Path, ours: Collection[str], inside: str = "") -> list[str]:
    above = {str(parent) for name in ours for parent in Path(name).parents}
    found: list[str] = []
    for name in names_in(folder / inside):
        whole = f"{inside}/{name}" if inside else name
        if whole in above and (folder / whole).is_dir():
            found += _foreign_elsewhere(folder, ours, whole)
        elif whole not in ours and name != WAITING:
            found.append(whole)
    return found


def keep(old: Path, new: Path, ours: Collection[str]) -> None:
    """Put everything foreign of an old folder into the new one too, without a copy if possible.

    Raises OSError where a name is taken there, or what is to be kept cannot be.
    """
    for name in foreign(old, ours):
        above = Path(name).parents
        for parent in reversed([p for p in above if p != Path()]):
            if not (new / parent).is_dir():
                _like(old / parent, new / parent)
        _keep_one(old / name, new / name)


def keep_rights(old: Path, new: int | Path) -> None:
    """Let others do with what replaces a file or a folder what they could do with that.

    The owner's rights are the umask's. What has other names too, such as a linked shard, is left.
    """
    with suppress(OSError):  # there is no old one, or the file system knows no rights
        found, made = old.stat(), os.stat(new)  # noqa: PTH116 (it may be a descriptor)
        if stat.S_IFMT(found.st_mode) == stat.S_IFMT(made.st_mode) and (
            made.st_nlink == 1 or stat.S_ISDIR(made.st_mode)
        ):
            mode = made.st_mode & 0o700 | found.st_mode & 0o077
            os.chmod(new, mode)  # noqa: PTH101 (it may be a descriptor)


def _keep_one(old: Path, new: Path) -> None:
    if old.is_dir() and not old.is_symlink():
        new.mkdir()
        with os.scandir(old) as entries:
            for entry in entries:
                _keep_one(Path(entry.path), new / entry.name)
        shutil.copystat(old, new, follow_symlinks=False)
        return
    if old.is_symlink():
        new.symlink_to(old.readlink())
        return
    try:
        os.link(old, new, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a file system or a rule that has no such links
        if not old.is_file():
            raise
        shutil.copy2(old, new, follow_symlinks=False)
        with new.open("rb") as copy:
            os.fsync(copy.fileno())


def _like(old: Path, new: Path) -> None:
    new.mkdir()
    shutil.copystat(old, new, follow_symlinks=False)

"""Which files of a model folder are carried along: regular ones of its own, of bounded size."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from surgeon.base.elsewhere import Elsewhere
from surgeon.base.errors import CheckpointError, listed
from surgeon.base.files import names_in
from surgeon.base.units import spoken_size
from surgeon.formats import Checkpoint
from surgeon.formats.folders import leaves_folder

Carry = Literal["none", "small", "all"]
# Tokenizers and configs are smaller; what is larger is data, or weights by another name.
_LARGEST = 100_000_000
_LARGEST_IN_ALL = 1_000_000_000


@dataclass
class Carried:
    """The files that are carried, by their names in the folder, and what is said of the others."""

    files: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def carried(source: Checkpoint, left_out: Collection[str], carry: Carry) -> Carried:
    """Return the input folder's files that are neither weights nor hidden, nor left out.

    With "small", files up to 100 MB each and 1 GB in all, in the order of their names.
    """
    if source.folder is None:
        return Carried()
    gone = {*(path.name for path in source.weight_files), *source.left_behind, *left_out}
    found, problems, large, total = Carried(), [], [], 0
    for path in _below(source.folder, gone):
        name = str(path.relative_to(source.folder))
        if problem := _problem(path, source.folder):
            problems.append(f"{name} ({problem})")
            continue
        size_bytes = path.stat().st_size
        if carry == "none":
            large.append(name)
        elif carry == "small" and (size_bytes > _LARGEST or total + size_bytes > _LARGEST_IN_ALL):
            large.append(f"{name} ({spoken_size(size_bytes)})")
        else:
            found.files[name] = path
            total += size_bytes
    if problems:
        found.notes.append(f"not carried along: {listed(problems)}")
    if large:
        hint = "" if carry == "none" else ", which are large; --carry all takes them along"
        found.notes.append(f"not carried along: {listed(large)}{hint}")
    return found


def carried_line(files: Mapping[str, Path]) -> str:
    """Return what a plan says of the files that are carried along."""
    if not files:
        return ""
    size_bytes = sum(path.stat().st_size for path in files.values())
    shown = ", ".join(repr(name) for name in files)
    return f"carried along, {spoken_size(size_bytes)}: {shown}"


def _below(folder: Path, gone: Collection[str]) -> Iterator[Path]:
    """Yield what a folder and its own subfolders hold; links to folders are not entered."""
    if isinstance(folder, Elsewhere):
        for name in names_in(folder):
            if name in gone or name.startswith("."):
                continue
            path = folder / name
            yield from _below(path, ()) if path.is_dir() else [path]
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name in gone or entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _all_below(entry.path)
        else:
            yield Path(entry.path)


def _all_below(folder: str) -> Iterator[Path]:
    for top, folders, files in os.walk(folder, onerror=_refuse):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(top, name))]  # noqa: PTH114, PTH118
        for name in sorted([*files, *links]):
            yield Path(top, name)


def _refuse(error: OSError) -> None:
    raise CheckpointError(f"{error.filename}: cannot be listed: {error.strerror}")


def _problem(path: Path, folder: Path) -> str:
    """Say why a file is not carried; a link may lead within the folder, or into its cache."""
    if isinstance(path, Elsewhere):
        return ""
    target = Path(os.path.realpath(path))
    is_inside = Path(os.path.realpath(folder)) in target.parents
    if path.is_symlink() and not is_inside and leaves_folder(path):
        return f"a link that leaves the folder, to {target}"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return f"a link that leads nowhere: {os.strerror(error.errno or 0).lower()}"
    if path.is_symlink() and stat.S_ISDIR(mode):
        return "a link to a folder"
    return "" if stat.S_ISREG(mode) else "no regular file"

"""Opening files that are there to be read: regular ones, of a size that was expected."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from surgeon.base.elsewhere import Elsewhere
from surgeon.base.errors import UsageError

# Not on every system; where there are no FIFOs there is nothing to wait for either.
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)
_BLOCK_BYTES = 1 << 20
_HEAD_BYTES = 1 << 12
# How far above its folder the `snapshots` of a hub cache may be: snapshots/REVISION/SUBFOLDER.
_DEEPEST_SNAPSHOT = 3


def open_regular(path: Path) -> int:
    """Open a file for reading; raises ValueError for a folder, a FIFO or a device, never waits.

    OSError where it cannot be opened.
    """
    descriptor = os.open(path, _FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("not a regular file")
    return descriptor


def is_there(path: Path) -> bool:
    """Say whether something has this name; a link that leads nowhere is something."""
    # Not Path.exists, which raises where it may not look.
    return path.exists() if isinstance(path, Elsewhere) else os.path.lexists(path)


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, in order; raises OSError where it cannot be listed."""
    if isinstance(folder, Elsewhere):
        return folder.names()
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)


def reading(path: Path) -> BinaryIO:
    """Open a regular file as `open` does; raises as `open_regular`."""
    if isinstance(path, Elsewhere):
        return path.reading()
    return os.fdopen(open_regular(path), "rb")


def link_out(path: Path) -> str:
    """Say what is wrong with a link: it may lead within its folder, or into its cache's blobs.

    A hub cache has snapshots/REVISION/..., of links, beside blobs/.
    """
    if isinstance(path, Elsewhere) or not os.path.islink(path):  # noqa: PTH114 (Path.is_symlink raises where it may not look)
        return ""
    target = os.path.realpath(path)
    folder = Path(os.path.realpath(path.parent))
    allowed = {str(folder)}
    for snapshots in folder.parents[:_DEEPEST_SNAPSHOT]:
        if snapshots.name == "snapshots":
            allowed.add(str(snapshots.parent / "blobs"))
            break
    if os.path.dirname(target) in allowed:  # noqa: PTH120
        return ""
    return (
        f"found a link that leaves the folder, to {target}; copy the folder with its links "
        "resolved (cp -rL)"
    )


def require_mine(path: Path, mark: bytes, what: str) -> None:
    """Raise UsageError where a name is taken by anything but a file that has our mark.

    `mark` is what such a file has among its first bytes, `what` how it is made.
    """
    if not is_there(path):
        return
    try:
        head = b"" if path.is_symlink() else _head(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {(error.strerror or '').lower()}") from None
    except ValueError:
        head = b""
    if mark not in head:
        raise UsageError(f"{path}: exists, and is no file that surgeon {what}; name another")


def _head(path: Path) -> bytes:
    with reading(path) as file:
        return file.read(_HEAD_BYTES)


def put_whole(path: Path, content: bytes) -> None:
    """Write a small file beside its place, and have it appear whole; raises OSError."""
    beside = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def sha256_of(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of the bytes of all these files together, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with reading(path) as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Return the bytes of a regular file; raises ValueError where there are more, or as above."""
    if isinstance(path, Elsewhere):
        return path.read_regular(most_bytes)
    with reading(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        # No more than it has, since a buffer of the asked size is made; one more, should it grow.
        data = file.read(size_bytes + 1) if size_bytes <= most_bytes else b""
    if max(size_bytes, len(data)) > most_bytes:
        raise ValueError(f"longer than {most_bytes:,} bytes")
    return data

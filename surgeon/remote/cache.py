"""What was fetched, kept in a folder: by what is shown of its URL, its ETag and the range."""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path

from surgeon.base.errors import UsageError
from surgeon.base.files import put_whole
from surgeon.remote import client
from surgeon.remote.client import Got, Identity, Target

_DIGEST_BYTES = 32
_directory: str = ""


def use(directory: str | os.PathLike[str] | None) -> None:
    """Keep what is fetched in a folder from now on; without one, nowhere."""
    global _directory
    if directory is not None:
        try:
            Path(directory).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--cache {directory}: {(error.strerror or '').lower()}") from None
    _directory = "" if directory is None else str(Path(directory).absolute())


def directory() -> str:
    """Return the folder that is used; empty where there is none."""
    return _directory


def fetch(
    target: Target, place: str, start: int, stop: int, known: Identity, folder: str
) -> tuple[Got, bool]:
    """Return bytes that are kept, or else fetch and keep them; say which. Raises Failure.

    Only what a strong ETag, or a commit, tells from any other content is kept.
    """
    is_told = target.is_pinned or (known.etag and not known.etag.startswith("W/"))
    if not folder or not is_told:
        return client.fetch(target, start, stop, known), True
    tag = target.root if target.is_pinned else known.etag
    said = f"{place}\0{tag}\0{known.size_bytes}\0{start}\0{stop}"
    key = hashlib.sha256(said.encode()).hexdigest()
    path = Path(folder, key[:2], key)
    if (data := _kept(path, stop - start)) is not None:
        return Got(data, known), False
    got = client.fetch(target, start, stop, known)
    with suppress(OSError):  # a full disk costs the next run time, and this one nothing
        path.parent.mkdir(exist_ok=True)
        put_whole(path, hashlib.sha256(got.data).digest() + got.data)
    return got, True


def _kept(path: Path, size_bytes: int) -> bytes | None:
    """Return what is kept, if it is whole and of this user: what is another's may be anything."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            found = os.fstat(file.fileno())
            is_ours = stat.S_ISREG(found.st_mode) and found.st_uid in (0, os.geteuid())
            if not is_ours or found.st_size != _DIGEST_BYTES + size_bytes:
                return None
            digest, data = file.read(_DIGEST_BYTES), file.read(size_bytes)
    except OSError:
        return None
    return data if hashlib.sha256(data).digest() == digest else None

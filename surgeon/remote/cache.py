"""What was fetched, kept in a folder: by what is shown of its URL, its ETag and the range."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from surgeon.base.errors import UsageError
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
    with suppress(OSError):
        kept = path.read_bytes()
        digest, data = kept[:_DIGEST_BYTES], kept[_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() == digest and len(data) == stop - start:
            return Got(data, known), False
    got = client.fetch(target, start, stop, known)
    with suppress(OSError):  # a full disk costs the next run time, and this one nothing
        path.parent.mkdir(exist_ok=True)
        new = path.with_name(f"{key}.{os.getpid()}.{start}")
        new.write_bytes(hashlib.sha256(got.data).digest() + got.data)
        new.replace(path)
    return got, True

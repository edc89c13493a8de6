"""Calls of the system that writing needs, where it has them."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable


def sync_file_range() -> Callable[..., int] | None:
    """Return the system's call of this name; None where it has none."""
    try:
        found: Callable[..., int] | None
        found = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    except (OSError, TypeError):  # there is no such library
        return None
    return found


def allocate(descriptor: int, size_bytes: int) -> None:
    """Reserve the space, so that a full disk is known at once."""
    if not hasattr(os, "posix_fallocate"):
        os.ftruncate(descriptor, size_bytes)
        return
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(descriptor, size_bytes)


def write_all(descriptor: int, block: memoryview, offset: int) -> None:
    """Write a block at an offset, however many calls it takes."""
    while block:
        count = os.pwrite(descriptor, block, offset)
        block = block[count:]
        offset += count

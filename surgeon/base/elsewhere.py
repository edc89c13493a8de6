"""Paths that lead to no file of this machine: what they must answer, so that all may ask them."""

from __future__ import annotations

from pathlib import PosixPath
from typing import BinaryIO


class Elsewhere(PosixPath):
    """A path whose bytes are fetched; it is read whole, and lists what is in it."""

    def read_regular(self, most_bytes: int) -> bytes:
        """Return all bytes; raises as `base.files.read_regular`."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """Return the names in a folder, in order."""
        raise NotImplementedError

    def reading(self) -> BinaryIO:
        """Open it as `open` does a file."""
        raise NotImplementedError

"""Checksums of tensors whose blocks are written in any order."""

from __future__ import annotations

import hashlib
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from surgeon.base.deferred import np
from surgeon.numeric import compiled

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

Algorithm = Literal["crc32", "sha256", "none"]

# CRC-32's polynomial, bit-reversed: the highest bit is the coefficient of x^0.
_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31


def _times(a: int, b: int) -> int:
    """Multiply two polynomials modulo the CRC's."""
    product = 0
    bit = _ONE
    while bit:
        if a & bit:
            product ^= b
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
        bit >>= 1
    return product


@lru_cache(maxsize=1024)
def _shift(size_bytes: int) -> int:
    """Return x^(8 n) modulo the CRC's polynomial: what n more bytes do to a CRC."""
    result, power = _ONE, _ONE >> 8  # x^8
    while size_bytes:
        if size_bytes & 1:
            result = _times(power, result)
        power = _times(power, power)
        size_bytes >>= 1
    return result


def crc32_joined(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC-32 of two runs of bytes, one after the other, from the CRC of each.

    As zlib's crc32_combine, which Python does not offer.
    """
    if compiled.loops():
        return compiled.crc32_joined(first, second, second_bytes)
    return _times(_shift(second_bytes), first) ^ second


def crc32(block: memoryview, before: int = 0) -> int:
    """Return the CRC-32 of bytes, after those of which it was `before`."""
    if compiled.loops():
        return compiled.crc32(np.frombuffer(block, np.uint8), before)
    return zlib.crc32(block, before)


class Running:
    """The checksum of bytes that arrive in order, and the running hash of a whole `file`.

    `has_crc32` asks for the CRC-32 besides another checksum.
    """

    def __init__(
        self, algorithm: Algorithm, file: Hash | None = None, *, has_crc32: bool = False
    ) -> None:
        self._crc: int | None = 0 if has_crc32 or algorithm == "crc32" else None
        self._hash = hashlib.sha256() if algorithm == "sha256" else None
        self._file = file

    def __bool__(self) -> bool:
        """Say whether anybody wants to see the bytes."""
        return not (self._crc is None and self._hash is None and self._file is None)

    def update(self, block: memoryview) -> None:
        if self._file is not None:
            self._file.update(block)
        if self._crc is not None:
            self._crc = crc32(block, self._crc)
        if self._hash is not None:
            self._hash.update(block)

    @property
    def crc32(self) -> int:
        return self._crc or 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest() if self._hash else ""

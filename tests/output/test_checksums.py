"""Checksums of blocks that are written in any order."""

import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgeon.numeric import compiled
from surgeon.output.checksums import Running, crc32_joined


def joined(parts):
    crc = 0
    for part in parts:
        crc = crc32_joined(crc, zlib.crc32(part), len(part))
    return crc


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_joined_crcs_are_the_crc_of_the_whole(parts):
    assert joined(parts) == zlib.crc32(b"".join(parts))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 255, 256, 65_535, 1 << 20, (16 << 20) + 3])
def test_any_length_can_follow(size):
    first, second = b"surgeon", bytes(size)
    expected = zlib.crc32(first + second)
    assert crc32_joined(zlib.crc32(first), zlib.crc32(second), size) == expected


@given(st.lists(st.binary(max_size=100), max_size=8))
def test_running_checksums_are_those_of_the_libraries(parts):
    crc, sha = Running("crc32"), Running("sha256")
    for part in parts:
        crc.update(memoryview(part))
        sha.update(memoryview(part))
    assert crc.crc32 == zlib.crc32(b"".join(parts))
    assert sha.sha256 == hashlib.sha256(b"".join(parts)).hexdigest()


def test_no_checksum_costs_nothing():
    running = Running("none")
    running.update(memoryview(b"x"))
    assert (running.crc32, running.sha256) == (0, "")


@pytest.mark.parametrize("without", [False, True])
def test_with_and_without_compiled_loops_checksums_are_the_same(without, monkeypatch):
    if without:
        monkeypatch.setattr(compiled, "loops", lambda: None)
    running = Running("crc32")
    running.update(memoryview(b"surgeon"))
    running.update(memoryview(bytes(range(256)) * 999))
    expected = zlib.crc32(b"surgeon" + bytes(range(256)) * 999)
    assert running.crc32 == expected == joined([b"surgeon", bytes(range(256)) * 999])

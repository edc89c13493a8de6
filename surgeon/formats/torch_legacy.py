"""Read what torch.save wrote before torch 1.6: a run of pickles, then the storages as they are.

The pickles are a magic number, a protocol's number, the writer's machine, the value, and the keys
of the storages in the order in which they follow. Layout: torch/serialization.py, `_legacy_save`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from surgeon.formats.checkpoint import LONGEST_PICKLE, Contents, Record
from surgeon.formats.files import InputFile
from surgeon.formats.opcodes import read_first
from surgeon.formats.pickle_machine import EndsEarlyError, World
from surgeon.formats.torch_globals import left_unbuilt, storage_bytes
from surgeon.formats.torch_values import TorchWorld

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
# Enough for the pickles of most files.
_FIRST_READ = 1 << 16


def read_legacy(file: InputFile) -> Contents:
    """Return what a legacy torch file holds; raises ValueError with what is wrong with it."""
    # The storages' places are not known before all pickles are read, so the value is read twice.
    world, data = TorchWorld(file, {}), b""
    values: list[object] = []
    ends = [0]
    while len(values) < 5:
        try:
            value, size = read_first(data[ends[-1] :], world if len(values) == 3 else _NOTHING)
        except EndsEarlyError as error:
            if len(data) in (file.size_bytes, LONGEST_PICKLE):
                raise ValueError(f"the legacy torch file is cut off or damaged: {error}") from None
            wanted = max(4 * len(data), _FIRST_READ)
            data = file.read(0, min(wanted, file.size_bytes, LONGEST_PICKLE))
        else:
            values.append(value)
            ends.append(ends[-1] + size)
    _check(values)
    members, end = _members(file, values[4], world, ends[-1])
    world = TorchWorld(file, members)
    value, _ = read_first(data[ends[3] : ends[4]], world)
    notes = left_unbuilt(world.unknown)
    if end < file.size_bytes:
        notes += (f"left out {file.size_bytes - end} bytes that follow what was saved first",)
    return Contents(
        path=file.path,
        value=value,
        header_sha256=hashlib.sha256(data[: ends[-1]]).hexdigest(),
        size_bytes=file.size_bytes,
        origins={},
        close=file.close,
        weight_files=(file.path,),
        notes=notes,
    )


class _Nothing(World):
    """The world of pickles that hold plain values alone."""

    def find(self, module: str, name: str) -> object:
        raise ValueError(f"found {f'{module}.{name}'!r:.200} where a plain value should be")


_NOTHING = _Nothing()


def _check(values: Sequence[object]) -> None:
    """Raise ValueError where the first pickles are not what a legacy file begins with."""
    magic, protocol, machine = values[:3]
    if magic != _MAGIC or protocol != _PROTOCOL or not isinstance(machine, dict):
        raise ValueError("the legacy torch file does not begin as torch's do; it is damaged")
    if machine.get("little_endian") is not True:
        raise ValueError("found the byte order of a big-endian machine; load it there with torch "
                         "and save it with the safetensors library")  # fmt: skip


def _members(
    file: InputFile, keys: object, world: TorchWorld, position: int
) -> tuple[dict[str, Record], int]:
    """Return where each storage lies, by the names that zip archives give them, and the end."""
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise ValueError("found no list of storages after the value; the file is damaged")
    members: dict[str, Record] = {}
    for key in keys:
        if key not in world.stated or f"data/{key}" in members:
            raise ValueError(f"found the storage {key!r}, which no tensor, or another one, has")
        dtype, count = world.stated[key]
        if position + 8 > file.size_bytes:
            raise ValueError(f"the legacy torch file ends before its storage {key!r}")
        found = int.from_bytes(file.read(position, 8), "little")
        if found != count:
            raise ValueError(f"found {found} elements in its storage {key!r}, expected {count}")
        size_bytes = count * storage_bytes(dtype)
        position += 8 + size_bytes
        if position > file.size_bytes:
            raise ValueError(
                f"the legacy torch file ends at byte {file.size_bytes}, inside its storage "
                f"{key!r}, which reaches to {position}"
            )
        members[f"data/{key}"] = Record(file, position - size_bytes, size_bytes, 0)
    return members, position

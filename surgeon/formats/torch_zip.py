"""Find the members of a torch zip archive, and check that they lie where they say.

zipfile would need 1 s for 100 000 members, accepts members that overlap or were moved, and does
not say where their bytes are. Layout: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from surgeon.formats.checkpoint import Record
from surgeon.formats.files import InputFile, Window
from surgeon.formats.foreign import KERAS, NPZ

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
# torch begins each storage at a multiple of 64 bytes, by what it adds to the header before it.
_PADDING = 128
_LONGEST_COMMENT = 65535
_LONGEST_DIRECTORY = 256_000_000
_ENCRYPTED, _SIZES_FOLLOW = 1, 8
_STORED, _DEFLATED = 0, 8
_LONGEST_CODE = 64_000_000
_EXPORTED = "save its weights with torch.save(torch.export.load(IN).state_dict, OUT)"
_NOT_TORCH = "the zip archive holds no data.pkl, so torch.save did not write it"


class _Code(NamedTuple):
    """A file of TorchScript's code, which may be compressed: where it is, how long it becomes."""

    record: Record
    size_bytes: int
    is_packed: bool


@dataclass(frozen=True)
class Archive:
    """The members of a torch archive, by their names inside its one folder."""

    file: InputFile | Window
    members: dict[str, Record]
    states_checksums: bool
    code: dict[str, _Code]

    @property
    def is_script(self) -> bool:
        """Say whether torch.jit.save wrote it."""
        return bool(self.code) or "constants.pkl" in self.members

    @property
    def has_constants(self) -> bool:
        """Say whether code holds tensors of its own, as frozen modules do."""
        return any(name.startswith("constants/") for name in self.members)

    def read(self, name: str) -> bytes:
        """Return a small member whole, its checksum verified."""
        record = self.members[name]
        data = self.file.read(record.offset, record.size_bytes)
        if self.states_checksums and zlib.crc32(data) != record.crc32:
            raise ValueError(
                f"member {name!r}: found CRC-32 {zlib.crc32(data):08x}, "
                f"expected {record.crc32:08x}; the file is damaged"
            )
        return data

    def read_code(self, name: str) -> str:
        """Return the text of a file of code, which is never run; empty where there is none."""
        if name not in self.code:
            return ""
        record, size_bytes, is_packed = self.code[name]
        if size_bytes > _LONGEST_CODE:
            raise ValueError(f"member {name!r}: found {size_bytes} bytes of code")
        data = self.file.read(record.offset, record.size_bytes)
        try:
            if is_packed:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size_bytes + 1)
        except zlib.error:
            data = b""
        if len(data) != size_bytes or (self.states_checksums and zlib.crc32(data) != record.crc32):
            raise ValueError(f"member {name!r}: is damaged")
        return data.decode("utf-8", "replace")


class _Entry(NamedTuple):
    """One entry of the central directory."""

    header_offset: int
    name: bytes
    flags: int
    method: int
    crc32: int
    stored_bytes: int
    size_bytes: int


def open_archive(file: InputFile | Window) -> Archive:
    """Read the directory of a torch archive; raises ValueError with what is wrong with it."""
    try:
        count, directory_offset, directory = _directory(file)
        entries = list(_entries(directory, count))
    except struct.error:
        raise ValueError(
            "the zip archive is cut off or damaged: its directory ends early"
        ) from None
    # First what the archive is: of another's the members are of no interest.
    entries.sort()
    names = [entry.name.decode("utf-8", "backslashreplace") for entry in entries]
    folder = _folder(set(names))
    records: dict[str, Record] = {}
    code: dict[str, _Code] = {}
    file.gather([_local(entry) for entry in entries])
    ends = [*(entry.header_offset for entry in entries[1:]), directory_offset]
    for name, entry, following in zip(names, entries, ends, strict=True):
        if name in records or name in code:
            raise ValueError(f"member {name!r} is there twice")
        try:
            if entry.method == _DEFLATED and name.startswith(f"{folder}code/"):
                code[name] = _Code(_packed(file, entry, following), entry.size_bytes, True)
            else:
                records[name] = _record(file, entry, following)
        except ValueError as error:
            raise ValueError(f"member {name!r}: {error}") from None
    members = {
        name.removeprefix(folder): record
        for name, record in records.items()
        if name.startswith(folder)
    }
    # torch.serialization.set_crc32_options(False) writes 0 everywhere.
    packed = {name.removeprefix(folder): one for name, one in code.items()}
    packed |= {name: _Code(record, record.size_bytes, False)
               for name, record in members.items() if name.startswith("code/")}  # fmt: skip
    archive = Archive(file, members, any(r.crc32 for r in records.values()), packed)
    if "byteorder" in members and archive.members["byteorder"].size_bytes < 16:
        order = archive.read("byteorder")
        if order != b"little":
            raise ValueError(
                f"found byte order {order.decode('ascii', 'replace')!r}, expected 'little'; "
                "load it with torch and save it again on a little-endian machine"
            )
    return archive


def _directory(file: InputFile | Window) -> tuple[int, int, bytes]:
    """Return how many entries the central directory has, where it is, and its bytes."""
    # Without a comment, as torch writes it.
    tail_size = min(file.size_bytes, _END.size)
    tail = file.read(file.size_bytes - tail_size, tail_size)
    if not (tail.startswith(b"PK\x05\x06") and tail.endswith(b"\0\0")):
        tail_size = min(file.size_bytes, _END.size + _LONGEST_COMMENT)
        tail = file.read(file.size_bytes - tail_size, tail_size)
    tail_offset = file.size_bytes - tail_size
    place = tail.rfind(b"PK\x05\x06")
    if place < 0:
        raise ValueError("the zip archive is cut off or damaged: it has no directory")
    _, disk, first_disk, here, count, size, offset, _ = _END.unpack_from(tail, place)
    end_offset = tail_offset + place
    if 0xFFFF in (here, count) or 0xFFFFFFFF in (size, offset):
        locator_offset = end_offset - _END64_LOCATOR.size
        if locator_offset >= 0:
            locator = file.read(locator_offset, _END64_LOCATOR.size)
            mark, _, end64_offset, _ = _END64_LOCATOR.unpack(locator)
            if mark == b"PK\x06\x07" and end64_offset + _END64.size <= locator_offset:
                end64 = _END64.unpack(file.read(end64_offset, _END64.size))
                disk, first_disk, here, count, size, offset = end64[4:]
                end_offset = end64_offset
    if disk or first_disk or here != count:
        raise ValueError("the zip archive is one of several volumes")
    if offset + size > end_offset or size > _LONGEST_DIRECTORY or count * _CENTRAL.size > size:
        raise ValueError(
            f"found a zip directory of {count} entries and {size} bytes at byte {offset}, "
            f"expected one that ends before byte {end_offset}; the file is cut off or damaged"
        )
    return count, offset, file.read(offset, size)


def _entries(directory: bytes, count: int) -> Iterator[_Entry]:
    place = 0
    for _ in range(count):
        (mark, _, _, flags, method, _, _, crc32, stored_bytes, size_bytes,
         name_size, extra_size, comment_size, _, _, _, offset) = _CENTRAL.unpack_from(
            directory, place
        )  # fmt: skip
        if mark != b"PK\x01\x02":
            raise ValueError(f"found no entry at byte {place} of the zip directory")
        extra_offset = place + _CENTRAL.size + name_size
        name = directory[place + _CENTRAL.size : extra_offset]
        place = extra_offset + extra_size + comment_size
        if 0xFFFFFFFF in (size_bytes, stored_bytes, offset):
            extra = directory[extra_offset : extra_offset + extra_size]
            size_bytes, stored_bytes, offset = _large(extra, size_bytes, stored_bytes, offset)
        yield _Entry(offset, name, flags, method, crc32, stored_bytes, size_bytes)


def _large(extra: bytes, *values: int) -> list[int]:
    """Replace each value of all ones by the next 64-bit one of the Zip64 extra field."""
    place, large = 0, b""
    while place + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, place)
        if kind == 1:
            large = extra[place + 4 : place + 4 + size]
        place += 4 + size
    found = []
    for value in values:
        if value == 0xFFFFFFFF and len(large) >= 8:
            value, large = int.from_bytes(large[:8], "little"), large[8:]
        found.append(value)
    return found


def _local(entry: _Entry) -> tuple[int, int]:
    """Return where an entry's local header is, and how long it is at most as torch writes it."""
    return entry.header_offset, _LOCAL.size + len(entry.name) + _PADDING


def _packed(file: InputFile | Window, entry: _Entry, following: int) -> Record:
    """Return where a compressed member's bytes are."""
    head_size = _LOCAL.size + len(entry.name)
    head = b""
    if entry.header_offset + head_size <= following:
        head = file.read(entry.header_offset, head_size)
    if not head.startswith(b"PK\x03\x04") or not head.endswith(entry.name):
        raise ValueError(f"found no local header of that name at byte {entry.header_offset}")
    offset = entry.header_offset + head_size + _LOCAL.unpack_from(head)[-1]
    if entry.flags & _ENCRYPTED or offset + entry.stored_bytes > following:
        raise ValueError("found it encrypted, or where something else lies")
    return Record(file, offset, entry.stored_bytes, entry.crc32)


def _record(file: InputFile | Window, entry: _Entry, following: int) -> Record:
    """Check an entry against its local header; `following` is where the next one begins."""
    if entry.flags & _ENCRYPTED:
        raise ValueError("it is encrypted; decrypt the archive first")
    if entry.method != _STORED:
        raise ValueError(
            "it is compressed, and torch stores uncompressed; unpack the archive and write it "
            "again without compression (zip -0)"
        )
    if entry.stored_bytes != entry.size_bytes:
        raise ValueError(f"found {entry.stored_bytes} bytes stored of {entry.size_bytes}")
    head_size = _LOCAL.size + len(entry.name)
    if entry.header_offset + head_size > following:
        raise ValueError(f"found it at byte {entry.header_offset}, where something else lies")
    head = file.read(entry.header_offset, head_size)
    mark, _, flags, method, _, _, crc32, stored_bytes, size_bytes, name_size, extra_size = (
        _LOCAL.unpack_from(head)
    )
    if mark != b"PK\x03\x04" or name_size != len(entry.name) or not head.endswith(entry.name):
        raise ValueError(f"found no local header of that name at byte {entry.header_offset}")
    offset = entry.header_offset + head_size + extra_size
    if offset + entry.size_bytes > following:
        raise ValueError(
            f"found {entry.size_bytes} bytes from byte {offset} on, "
            f"expected them to end by byte {following}"
        )
    if size_bytes == stored_bytes == 0xFFFFFFFF:
        extra = file.read(entry.header_offset + head_size, extra_size)
        size_bytes, stored_bytes = _large(extra, size_bytes, stored_bytes)
    unstated = flags & _SIZES_FOLLOW and (crc32, stored_bytes, size_bytes) == (0, 0, 0)
    local = (method, crc32, stored_bytes, size_bytes)
    if not unstated and local != (_STORED, entry.crc32, entry.stored_bytes, entry.size_bytes):
        raise ValueError(
            f"found {size_bytes} bytes with CRC-32 {crc32:08x} in its local header, "
            f"expected {entry.size_bytes} with {entry.crc32:08x}"
        )
    return Record(file, offset, entry.size_bytes, entry.crc32)


def _folder(names: Collection[str]) -> str:
    """Return the archive's one folder, the one that holds data.pkl.

    Raises ValueError with what the archive is instead.
    """
    folders = [
        name.removesuffix("data.pkl")
        for name in names
        if name.endswith("/data.pkl") and name.count("/") == 1
    ]
    if not folders:
        if any(name.endswith(".npy") for name in names):
            raise ValueError(f"this is a NumPy .npz archive; {NPZ}")
        if "model.weights.h5" in names:
            raise ValueError(f"this is a Keras model; {KERAS}")
        if any(name.endswith("/archive_format") for name in names):
            raise ValueError(f"this is a program of torch.export; {_EXPORTED}")
        raise ValueError(_NOT_TORCH)
    if len(folders) > 1:
        raise ValueError(f"found data.pkl in {len(folders)} folders, expected it in one")
    return folders[0]

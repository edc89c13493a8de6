"""Read what torch.save wrote as an archive: a whole file, or one of thousands inside a file."""

from __future__ import annotations

from typing import NamedTuple

from surgeon.formats.checkpoint import Record
from surgeon.formats.files import InputFile, Window
from surgeon.formats.opcodes import read as read_pickle
from surgeon.formats.torch_values import TorchWorld
from surgeon.formats.torch_zip import Archive, open_archive
from surgeon.lazy import LazyTensor, Stored, TensorSpec, is_stored

_ONE_STORAGE = "data/0"


def read_archive(file: InputFile | Window) -> tuple[object, TorchWorld, bytes]:
    """Return an archive's value, the world that it was read in, and the pickle."""
    archive = open_archive(file)
    data = archive.read("data.pkl")
    return *_read(archive, data), data


def _read(archive: Archive, data: bytes) -> tuple[object, TorchWorld]:
    world = TorchWorld(archive.file, archive.members)
    if archive.is_script:
        from surgeon.formats.torch_script import ScriptWorld  # few files are such

        world = ScriptWorld(archive)
    try:
        value = read_pickle(data, world)
    except ValueError as error:
        raise ValueError(f"data.pkl: {error}") from None
    if not archive.states_checksums:
        world.origins.clear()
    return value, world


class _Template(NamedTuple):
    """What a pickle says of the one tensor that it is: where it begins in a storage of a size."""

    spec: TensorSpec
    begin: int
    storage_bytes: int


class Archives:
    """Reads archives of which most hold one tensor, and many have the same pickle."""

    def __init__(self) -> None:
        self._templates: dict[bytes, _Template] = {}

    def read(self, file: Window) -> tuple[object, dict[LazyTensor, Record]]:
        """Return an archive's value, and the records of the storages of its tensors."""
        archive = open_archive(file)
        data = archive.read("data.pkl")
        template, record = self._templates.get(data), archive.members.get(_ONE_STORAGE)
        if template and record and record.size_bytes == template.storage_bytes:
            tensor = Stored(file, record.offset + template.begin, template.spec)
            return tensor, {tensor: record} if archive.states_checksums else {}
        value, world = _read(archive, data)
        if is_stored(value) and record and len(world.stated) == 1:
            begin = value.offset - record.offset
            if 0 <= begin <= record.size_bytes and value.spec.count:
                self._templates[data] = _Template(value.spec, begin, record.size_bytes)
        return value, world.origins

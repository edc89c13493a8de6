"""Open torch distributed checkpoints: `.metadata` says which archive holds which part of what.

Each part of a tensor, and each value that is none, is an archive of torch.save inside a file of the
folder. Layout: torch/distributed/checkpoint/metadata.py and filesystem.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from surgeon.base.errors import CheckpointError
from surgeon.formats.checkpoint import (
    DISTRIBUTED,
    LONGEST_PICKLE,
    Contents,
    Opaque,
    Record,
    at_most,
    is_tensor,
    plain,
    spec_of,
)
from surgeon.formats.fetched import open_input
from surgeon.formats.files import InMemory, InputFile, Window
from surgeon.formats.pickle_machine import World
from surgeon.lazy import Joined, LazyTensor, Sharded, Stored, TensorSpec
from surgeon.numeric.dtypes import DTYPES

# What a metadata pickle is made of, wherever torch keeps it: attributes, and nothing that runs.
_CLASSES = frozenset(
    {
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "MetadataIndex", "StorageMeta", "_StorageInfo",
        "_MEM_FORMAT_ENCODING", "MEM_FORMAT_ENCODING",
    }
)  # fmt: skip
_IGNORED = frozenset({"torch.serialization._get_layout", "pathlib.PosixPath",
                      "pathlib.WindowsPath", "pathlib._local.PosixPath"})  # fmt: skip
_DTYPES = {f"torch.{row.torch}": row.name for row in DTYPES.values() if row.bits >= 8}
_HINT = "convert it with torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
_DEEPEST = 100
# Behind so many nobody learns more from going on.
_MOST_PROBLEMS = 1000

ReadPickle = Callable[[bytes, Any], object]


class ReadArchive(Protocol):
    """What reads archives of torch.save inside a file."""

    def read(self, file: Window) -> tuple[object, Mapping[LazyTensor, Record]]:
        """Return an archive's value, and the records of the storages of its tensors."""
        ...


@dataclass(frozen=True)
class _Class:
    """What stands for a class of a metadata pickle."""

    name: str


@dataclass(eq=False)
class _Built:
    """An object of a metadata pickle: its class's name, and its attributes once they are known."""

    name: str
    state: Mapping[str, Any] = field(default_factory=dict)

    def get(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """Return an attribute; raises ValueError where it is missing or something else."""
        value = self.state.get(key)
        if not isinstance(value, kind):
            raise ValueError(f"found {self.name}.{key} that is {plain(value)}")
        return value


class _MetadataWorld(World):
    """What a metadata pickle may refer to."""

    def find(self, module: str, name: str) -> object:
        full = f"{module}.{name}"
        if name in _CLASSES and module.startswith("torch.distributed."):
            return _Class(name)
        if full in ("torch.Size", "builtins.tuple"):
            return tuple
        if full in _IGNORED:
            return _Class(full)
        if module == "torch":
            return _DTYPES.get(full, full)
        raise ValueError(f"found {full!r:.200}, which is not looked up; {_HINT}")

    def call(self, function: object, arguments: tuple[object, ...]) -> object:
        if function is tuple:
            (items,) = arguments or ((),)
            if type(items) is not tuple and type(items) is not list:
                raise TypeError
            return tuple(items)
        if not isinstance(function, _Class):
            raise TypeError
        return _Built(function.name)

    def build(self, value: object, state: object) -> None:
        if not isinstance(value, _Built):
            raise TypeError
        if isinstance(state, dict):
            value.state = state
        elif value.name == "TensorProperties" and isinstance(state, tuple) and state:
            value.state = {"dtype": state[0]}


def open_distributed(folder: Path, read: ReadPickle, archives: ReadArchive) -> Contents:
    """Return what a distributed checkpoint holds, put together; reads headers only.

    `read` reads a pickle, `archives` what torch.save wrote. Raises CheckpointError, one line
    per problem.
    """
    path = folder / DISTRIBUTED
    metadata = open_input(path)
    try:
        if metadata.size_bytes > LONGEST_PICKLE:
            raise ValueError(
                f"found {metadata.size_bytes} bytes, expected at most {LONGEST_PICKLE}"
            )
        data = metadata.read(0, metadata.size_bytes)
        items = _items(read(data, _MetadataWorld()))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    finally:
        metadata.close()
    with ExitStack() as stack:
        parts = _Parts(folder, stack, archives)
        root = _Container()
        problems = []
        for item in items:
            try:
                root.put(item.path, parts.value(item))
            except (ValueError, CheckpointError) as error:
                found = error.problems if isinstance(error, CheckpointError) else [str(error)]
                problems += [f"{folder}: '{item.name}': {line}" for line in found]
                if len(problems) > _MOST_PROBLEMS:
                    break
        if problems:
            raise at_most(problems, folder)
        return Contents(
            path=folder,
            value=root.plain(),
            header_sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=metadata.size_bytes + sum(file.size_bytes for file in parts.files.values()),
            origins=parts.origins,
            close=stack.pop_all().close,
            weight_files=(path, *(file.path for _, file in sorted(parts.files.items()))),
        )


class _Extent(NamedTuple):
    """Where an archive lies."""

    file: str
    offset: int
    size_bytes: int


class _Chunk(NamedTuple):
    """A block of a tensor: where it begins, its size, and where its archive lies."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    extent: _Extent


class _Item(NamedTuple):
    """One entry: its flat name, its path in nested containers, and what it is made of.

    A value that is no tensor has no spec, and one chunk.
    """

    name: str
    path: tuple[str | int, ...]
    spec: TensorSpec | None
    chunks: tuple[_Chunk, ...]


def _items(metadata: object) -> list[_Item]:
    """Return what a metadata pickle describes; raises ValueError where it contradicts itself."""
    if not isinstance(metadata, _Built) or metadata.name != "Metadata":
        raise ValueError("found no Metadata, so torch.distributed.checkpoint did not write it")
    extents = _extents(metadata.get("storage_data", dict))
    paths = metadata.state.get("planner_data") or {}
    if not isinstance(paths, dict):
        raise ValueError(f"found planner_data that is {plain(paths)}, expected a dict")
    items = []
    for name, described in metadata.get("state_dict_metadata", dict).items():
        if type(name) is not str or not isinstance(described, _Built):
            raise ValueError(f"found an entry {plain(name)} that does not describe what it is")
        try:
            items.append(_item(name, described, paths.get(name, (name,)), extents))
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from None
    return items


def _extents(stored: Mapping[object, object]) -> dict[tuple[str, tuple[int, ...] | None], _Extent]:
    extents = {}
    for index, info in stored.items():
        if not isinstance(index, _Built) or not isinstance(info, _Built):
            raise ValueError("found storage_data that does not say where what lies")
        offset = index.get("offset", (tuple, type(None)))
        extent = _Extent(*(info.get(key, kind) for key, kind in (
            ("relative_path", str), ("offset", int), ("length", int))))  # fmt: skip
        if info.state.get("transform_descriptors"):
            raise ValueError(f"found what was transformed, such as compressed, on writing; {_HINT}")
        extents[index.get("fqn", str), None if offset is None else _whole(offset)] = extent
    return extents


def _whole(numbers: tuple[object, ...]) -> tuple[int, ...]:
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("found offsets or sizes that are no whole numbers of 0 or more")
    return numbers  # type: ignore[return-value]  # checked above


def _item(
    name: str,
    described: _Built,
    path: object,
    extents: Mapping[tuple[str, tuple[int, ...] | None], _Extent],
) -> _Item:
    if not isinstance(path, tuple) or any(type(key) not in (str, int) for key in path):
        raise ValueError("found a path that is not made of keys and indices")
    if not 0 < len(path) <= _DEEPEST:
        raise ValueError(f"found a path of {len(path)} keys, expected 1 to {_DEEPEST}")

    def placed(offsets: tuple[int, ...] | None) -> _Extent:
        if (name, offsets) not in extents:
            where = "" if offsets is None else f" at {offsets}"
            raise ValueError(f"found nothing that says where its data{where} is")
        return extents[name, offsets]

    if described.name == "BytesStorageMetadata":
        return _Item(name, path, None, (_Chunk((), (), placed(None)),))
    if described.name != "TensorStorageMetadata":
        raise ValueError(f"found a {described.name}, expected a tensor or bytes")
    dtype = described.get("properties", _Built).get("dtype", str)
    spec = spec_of(dtype, _whole(described.get("size", tuple)))
    chunks = []
    for chunk in described.get("chunks", list):
        if not isinstance(chunk, _Built):
            raise ValueError("found a chunk that says nothing of itself")
        offsets, sizes = (_whole(chunk.get(key, tuple)) for key in ("offsets", "sizes"))
        if not len(offsets) == len(sizes) == len(spec.shape):
            raise ValueError(f"found a chunk {sizes} at {offsets} of a tensor {spec.shape}")
        chunks.append(_Chunk(offsets, sizes, placed(offsets)))
    return _Item(name, path, spec, tuple(chunks))


class _Container(dict[str | int, Any]):
    """A dict, or with indices for keys a list, that paths lead through."""

    def put(self, path: tuple[str | int, ...], value: object) -> None:
        """Put a value where its path leads; raises ValueError where something is in the way."""
        within = self
        for key in path[:-1]:
            following = within.setdefault(key, _Container())
            if not isinstance(following, _Container):
                raise ValueError(f"found a path {path} that leads through a value")
            within = following
        if path[-1] in within:
            raise ValueError(f"found two values at its path {path}")
        within[path[-1]] = value

    def plain(self) -> dict[object, object] | list[object]:
        """Return the same as plain dicts and lists."""
        items: dict[object, object] = {
            key: value.plain() if isinstance(value, _Container) else value
            for key, value in self.items()
        }
        indices = range(len(items))
        return [items[i] for i in indices] if items and items.keys() == set(indices) else items


class _Parts:
    """The archives of a folder, opened as they are asked for; `origins` as in `Contents`."""

    def __init__(self, folder: Path, stack: ExitStack, archives: ReadArchive) -> None:
        self.files: dict[str, InputFile] = {}
        self.origins: dict[LazyTensor, Record] = {}
        self._folder = folder
        self._stack = stack
        self._archives = archives
        # One archive, said to be 100 000 tensors, would be read as often.
        self._read_extents: set[tuple[str, int]] = set()

    def value(self, item: _Item) -> object:
        """Return a tensor, put together, or what an entry is otherwise."""
        if item.spec is None:
            return self._read(item.chunks[0].extent)
        if not item.spec.count:
            return Stored(InMemory(self._folder, np.empty(0, np.uint8)), 0, item.spec)
        # Ranks may hold nothing of a small tensor.
        chunks = [chunk for chunk in item.chunks if 0 not in chunk.sizes]
        if not chunks:
            raise ValueError(f"found no chunk of a tensor {item.spec}")
        tensor = _composed(chunks, item.spec.shape, partial(self._tensor, item.spec.dtype))
        return Sharded(tensor) if len(chunks) > 1 else tensor

    def _tensor(self, dtype: str, chunk: _Chunk) -> LazyTensor:
        tensor = self._read(chunk.extent)
        if isinstance(tensor, Opaque) and tensor.problem:
            raise ValueError(tensor.problem)
        if not is_tensor(tensor) or tensor.spec != TensorSpec(dtype, chunk.sizes):
            what = tensor.spec if is_tensor(tensor) else plain(tensor)
            raise ValueError(
                f"found {what} at {chunk.offsets}, expected {TensorSpec(dtype, chunk.sizes)}"
            )
        return tensor

    def _read(self, extent: _Extent) -> object:
        if (extent.file, extent.offset) in self._read_extents:
            raise ValueError(
                f"found it at byte {extent.offset} of {extent.file}, as another one is"
            )
        self._read_extents.add((extent.file, extent.offset))
        value, origins = self._archives.read(self._window(extent))
        self.origins.update(origins)
        return value

    def _window(self, extent: _Extent) -> Window:
        file = self.files.get(extent.file)
        if file is None:
            if (
                Path(extent.file).name != extent.file
                or extent.file in ("", "..")
                or "\0" in extent.file
            ):
                raise ValueError(f"found the path {extent.file!r}, expected a file of the folder")
            file = self.files[extent.file] = open_input(self._folder / extent.file)
            self._stack.callback(file.close)
        if min(extent.offset, extent.size_bytes) < 0 or (
            extent.offset + extent.size_bytes > file.size_bytes
        ):
            raise ValueError(
                f"found {extent.size_bytes} bytes at {extent.offset} of {extent.file}, which has "
                f"{file.size_bytes}"
            )
        return Window(file, extent.offset, extent.size_bytes)


def _composed(
    chunks: Sequence[_Chunk],
    shape: tuple[int, ...],
    tensor: Callable[[_Chunk], LazyTensor],
    dim: int = 0,
) -> LazyTensor:
    """Return the tensor that chunks tile, from dimension `dim` on; raises ValueError."""
    if dim == len(shape):
        if len(chunks) > 1:
            raise ValueError(f"found {len(chunks)} chunks at {chunks[0].offsets}")
        return tensor(chunks[0])
    parts = []
    reached = 0
    for offset, size, slab in _slabs(chunks, dim):
        if offset != reached:
            what = "nothing" if offset > reached else "two chunks"
            raise ValueError(f"found {what} from {min(offset, reached)} on in dimension {dim}")
        parts.append(_composed(slab, shape, tensor, dim + 1))
        reached += size
    if reached != shape[dim]:
        raise ValueError(f"found chunks up to {reached} in dimension {dim}, expected {shape[dim]}")
    return Joined(tuple(parts), dim) if len(parts) > 1 else parts[0]


def _slabs(chunks: Sequence[_Chunk], dim: int) -> Iterator[tuple[int, int, list[_Chunk]]]:
    """Yield (offset, size, chunks) of those chunks that lie side by side in a dimension."""

    def extent(chunk: _Chunk) -> tuple[int, int]:
        return chunk.offsets[dim], chunk.sizes[dim]

    for (offset, size), slab in groupby(sorted(chunks, key=extent), extent):
        yield offset, size, list(slab)

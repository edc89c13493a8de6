"""Read safetensors files: https://github.com/huggingface/safetensors#format."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

from surgeon.base.errors import CheckpointError
from surgeon.base.strict_json import MOST_BYTES, parse_object
from surgeon.formats.checkpoint import Checkpoint, at_most, spec_of
from surgeon.formats.files import InputFile
from surgeon.lazy import LazyTensor, Stored, TensorSpec

# The key of our metadata entry that says which of the others are ties.
TIES = "ties"
_TENSOR_KEYS = {"dtype", "shape", "data_offsets"}


def has_header(size_bytes: int, start: bytes) -> bool:
    """Tell by the first bytes of a file whether it is meant to be safetensors.

    That is a header length that may be one, or else a brace where the header begins: what is wrong
    with such a file is for `open_safetensors` to say.
    """
    length = int.from_bytes(start[:8], "little")
    is_json = start.startswith(b"{") and length > size_bytes
    return not is_json and (start[8:9] == b"{" or size_bytes < 8 or length < size_bytes)


def open_safetensors(file: InputFile) -> Checkpoint:
    """Read the header and check all that it says; no tensor is read."""
    try:
        header = _header(file)
        data_offset = 8 + len(header)
        entries = parse_object(header)
        metadata = _metadata(entries.pop("__metadata__", {}))
    except ValueError as error:
        raise CheckpointError(f"{file.path}: {error}") from None
    tensors = _tensors(file, entries, data_offset)
    ties = tied_names(metadata, tensors)
    # The metadata's own order is any.
    tensors.update((alias, tensors[owner]) for alias, owner in sorted(ties.items()))
    return Checkpoint(
        path=file.path,
        tensors=tensors,
        metadata={key: value for key, value in metadata.items() if key not in ties},
        header_sha256=hashlib.sha256(header).hexdigest(),
        size_bytes=file.size_bytes,
        weight_files=(file.path,),
        safetensors=(file,),
        closers=(file.close,),
    )


def header_of(file: InputFile) -> tuple[bytes, dict[str, Any]]:
    """Return the bytes before the data of an opened file, and the JSON in them."""
    header = _header(file)
    return len(header).to_bytes(8, "little") + header, parse_object(header)


def header_sha256(header: bytes) -> str:
    """Return the hash that pins a file's names, shapes, dtypes and layout.

    Over the JSON text of the header, its padding included, without the eight bytes of its length.
    """
    return hashlib.sha256(header[8:]).hexdigest()


def _header(file: InputFile) -> bytes:
    if file.size_bytes < 8:
        raise ValueError(f"found {file.size_bytes} bytes, expected a header length of 8 bytes")
    length = int.from_bytes(file.read(0, 8), "little")
    if length == 0:
        raise ValueError("found a header length of 0, expected at least 2")
    if length > file.size_bytes - 8:
        raise ValueError(
            f"found a header length of {length}, expected at most {file.size_bytes - 8}, "
            "which is where the file ends"
        )
    if length > MOST_BYTES:
        raise ValueError(f"found a header length of {length}, expected at most {MOST_BYTES}")
    return file.read(8, length)


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(type(text) is str for text in value.values()):
        if isinstance(value, dict) and {"dtype", "shape"} <= value.keys():
            raise ValueError("a tensor is called '__metadata__', which is not a tensor's name")
        raise ValueError("found '__metadata__' that is not an object of strings")
    return value


def tied_names(metadata: Mapping[str, str], tensors: Collection[str]) -> dict[str, str]:
    """Return {alias: owner}: the names that save_model left out because they are tied.

    Any entry that names a tensor reads as one, unless our own entry says which do.
    """
    told = _told(metadata.get("surgeon", ""))
    return {
        alias: owner
        for alias, owner in metadata.items()
        if owner in tensors
        and alias not in tensors
        and (alias != "format" if told is None else alias in told)
    }


def _told(ours: str) -> list[Any] | None:
    """Return the names that our entry says are ties, None where it does not say."""
    if TIES not in ours:
        return None
    try:
        told = parse_object(ours.encode()).get(TIES)
    except ValueError:
        return None
    return told if isinstance(told, list) else None


def _tensors(file: InputFile, entries: dict[str, Any], data_offset: int) -> dict[str, LazyTensor]:
    problems = []
    found: list[tuple[int, int, str, TensorSpec]] = []
    for name, entry in entries.items():
        try:
            found.append(_placed(name, entry))
        except ValueError as error:
            problems.append(f"{file.path}: tensor {name!r}: {error}")
    if not problems:
        problems = _gaps(file, found, file.size_bytes - data_offset)
    if problems:
        raise at_most(problems, file.path)
    return {name: Stored(file, data_offset + begin, spec) for begin, _, name, spec in found}


def _placed(name: str, entry: object) -> tuple[int, int, str, TensorSpec]:
    if type(entry) is not dict or entry.keys() != _TENSOR_KEYS:
        keys = f"the keys {sorted(entry)}" if isinstance(entry, dict) else type(entry).__name__
        raise ValueError(f"found {keys}, expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if type(dtype) is not str or type(shape) is not list:
        raise ValueError(
            f"found dtype {dtype!r:.100} and shape {shape!r:.100}, expected a name and a list"
        )
    spec = spec_of(dtype, shape)
    begin, end = offsets if type(offsets) is list and len(offsets) == 2 else (None, None)
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise ValueError(f"found data_offsets {offsets!r:.200}, expected [begin, end] in order")
    if end - begin != spec.size_bytes or spec.size_bits % 8:
        raise ValueError(f"found {end - begin} bytes, expected {spec.size_bits / 8:g} for {spec}")
    return begin, end, name, spec


def _gaps(
    file: InputFile, found: list[tuple[int, int, str, TensorSpec]], data_size: int
) -> list[str]:
    """List where tensors overlap, leave a hole, or do not end where the file does."""
    problems = []
    reached = 0
    for begin, end, name, _ in sorted(found):
        if begin != reached:
            what = "a hole before it" if begin > reached else "an overlap"
            problems.append(
                f"{file.path}: tensor {name!r}: found {what}: it begins at byte {begin} of the "
                f"data, expected {reached}"
            )
        if end > reached:
            reached = end
    if reached != data_size:
        what = "the file is cut off" if reached > data_size else "there are trailing bytes"
        problems.append(f"{file.path}: found {data_size} bytes of data, expected {reached}; {what}")
    return problems

"""Which of the input's files a recipe leaves as they are, so that an output may share them."""

from __future__ import annotations

from collections.abc import Mapping

from surgeon.draft import Tensors, ties
from surgeon.formats import Checkpoint, header_of
from surgeon.formats.files import InputFile
from surgeon.lazy import ByteRange
from surgeon.output.layout import OutputFile, Placed


def untouched(source: Checkpoint, tensors: Tensors) -> list[OutputFile]:
    """Return the safetensors files of the input that hold planned tensors alone, as planned.

    All their tensors are among the planned ones, under the same names, tied to the same names, and
    owned by the names that surgeon would store them under; and they say what wrote them.
    """
    before, after = _names(source.tensors), _names(tensors)
    same = {name for name in source.tensors if before.get(name) == after.get(name)}
    stored_here = same - ties(tensors).keys()
    found = []
    for file in source.safetensors:
        header, entries = header_of(file)
        # transformers refuses a file without "format".
        if "format" in entries.pop("__metadata__", {}) and (names := entries.keys()) <= stored_here:
            placed = tuple(_placed(file, name, tensors, len(header)) for name in names)
            in_order = tuple(sorted(placed, key=lambda one: (one.offset, one.name)))
            found.append(OutputFile(file.path.name, header, in_order, file.size_bytes, file))
    return found


def _names(tensors: Tensors) -> Mapping[str, tuple[int, frozenset[str]]]:
    """Return, for each name, which tensor it is, and all names of that."""
    by_tensor: dict[int, set[str]] = {}
    for name, tensor in tensors.items():
        by_tensor.setdefault(id(tensor), set()).add(name)
    frozen = {tensor: frozenset(names) for tensor, names in by_tensor.items()}
    return {name: (id(tensor), frozen[id(tensor)]) for name, tensor in tensors.items()}


def _placed(file: InputFile, name: str, tensors: Tensors, header_bytes: int) -> Placed:
    tensor = tensors[name]
    (piece,) = tensor.pieces(0, tensor.spec.count)  # as all tensors of a safetensors file have
    assert isinstance(piece, ByteRange)
    assert piece.file is file
    return Placed(name, tensor, piece.offset - header_bytes)

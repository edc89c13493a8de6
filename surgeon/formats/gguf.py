"""Read GGUF files; a quantised tensor's blocks are bytes, under its name and that of its type.

`blk.0.attn_q.weight.Q4_K` is what `dequantize` makes `blk.0.attn_q.weight` of. Types that it does
not know are named and refused.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. All numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from surgeon.base.errors import CheckpointError
from surgeon.formats.checkpoint import Checkpoint, at_most, spec_of
from surgeon.formats.files import InputFile
from surgeon.lazy import LazyTensor, Stored, TensorSpec
from surgeon.numeric.ggml import BLOCK_TYPES, BlockType

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_LONGEST_HEADER = 256_000_000
_FIRST_READ = 1 << 20
_MOST_TENSORS = 100_000
_MOST_DIMENSIONS = 4
_LONGEST_VALUE = 1000
_DEEPEST_ARRAY = 4
# https://github.com/ggml-org/ggml/blob/master/include/ggml.h, enum ggml_type.
_TYPES = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
_QUANTISED = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
            12: "d"}  # fmt: skip
_FORMS = {form: struct.Struct(f"<{form}") for form in _SCALARS.values()}
_STRING, _ARRAY = 8, 9
# Behind so many nobody learns more from going on.
_MOST_PROBLEMS = 1000
_NOTE = (
    "GGUF: names, and the order of rows of some weights (q and k of llama), are llama.cpp's, not "
    "transformers'"
)


_CODES = (
    "GGUF: quantised tensors ({}) are blocks of codes, under their names and types; a step "
    '{{"op": "dequantize"}} makes numbers of them'
)


class _EndsError(ValueError):
    """The header goes on behind the bytes that were read."""


class _Header:
    """The bytes of a header, read from the front."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, form: str) -> int | float | bool:
        """Return the next number."""
        shape = _FORMS[form]
        if self.position + shape.size > len(self.data):
            raise _EndsError
        (value,) = shape.unpack_from(self.data, self.position)
        self.position += shape.size
        return value  # type: ignore[no-any-return]

    def skip(self, size_bytes: int) -> bytes:
        """Return the next bytes."""
        end = self.position + size_bytes
        if end > len(self.data):
            raise _EndsError
        found = self.data[self.position : end]
        self.position = end
        return found

    def text(self) -> str:
        """Return the next string."""
        return self.skip(int(self.take("Q"))).decode("utf-8")

    def name(self) -> str:
        """Return the next string, which is a name."""
        if not (name := self.text()):
            raise ValueError(f"found an empty name at byte {self.position} of the GGUF header")
        return name

    def value(self, kind: int, depth: int = 0) -> str | None:
        """Return the next value as text; None for arrays, which are tokens and the like."""
        if kind in _SCALARS:
            return str(self.take(_SCALARS[kind]))
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth > _DEEPEST_ARRAY:
            raise ValueError(f"found a value of type {kind}, which GGUF does not have")
        inner, count = int(self.take("I")), int(self.take("Q"))
        if inner in _SCALARS:
            self.skip(count * _FORMS[_SCALARS[inner]].size)
        elif count > len(self.data):  # each takes some bytes
            raise _EndsError
        else:
            for _ in range(count):
                self.value(inner, depth + 1)
        return None


def open_gguf(file: InputFile) -> Checkpoint:
    """Read the header and check all that it says; no tensor is read."""
    size_bytes = min(_FIRST_READ, file.size_bytes)
    while True:
        data = file.read(0, size_bytes)
        try:
            return _opened(file, data)
        except UnicodeDecodeError:
            raise CheckpointError(f"{file.path}: found a name that is not UTF-8") from None
        except _EndsError:
            if size_bytes >= min(file.size_bytes, _LONGEST_HEADER):
                raise CheckpointError(
                    f"{file.path}: the GGUF header is cut off or damaged"
                ) from None
            size_bytes = min(size_bytes * 16, file.size_bytes, _LONGEST_HEADER)
        except ValueError as error:
            raise CheckpointError(f"{file.path}: {error}") from None


def _opened(file: InputFile, data: bytes) -> Checkpoint:
    header = _Header(data)
    header.skip(len(MAGIC))
    version = int(header.take("I"))
    if version not in _VERSIONS:
        hint = "a big-endian file" if version >> 16 else "convert it anew with llama.cpp"
        raise ValueError(f"found GGUF version {version}, expected 2 or 3; {hint}")
    count, entries = int(header.take("Q")), int(header.take("Q"))
    if count > _MOST_TENSORS or entries > _MOST_TENSORS:
        raise ValueError(
            f"found {count} tensors and {entries} entries, expected at most {_MOST_TENSORS} of each"
        )
    metadata: dict[str, str] = {}
    for _ in range(entries):
        key = header.name()
        value = header.value(int(header.take("I")))
        if value is not None and len(value) <= _LONGEST_VALUE:
            metadata[key] = value
    alignment = int(metadata.get("general.alignment", "32"))
    if alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"found an alignment of {alignment}, expected a power of two")
    found = [_entry(header) for _ in range(count)]
    begin = -(-header.position // alignment) * alignment
    tensors = _tensors(file, found, begin)
    quantised = _count(found, lambda kind: _blocks_of(kind) is not None)
    return Checkpoint(
        path=file.path,
        tensors=tensors,
        # What a tokenizer and a chat template are made of is of no use in a safetensors file.
        metadata={},
        header_sha256=hashlib.sha256(data[: header.position]).hexdigest(),
        size_bytes=file.size_bytes,
        notes=(_NOTE, *_about(metadata), *([_CODES.format(quantised)] if quantised else [])),
        weight_files=(file.path,),
        closers=(file.close,),
    )


def _about(metadata: dict[str, str]) -> list[str]:
    known = [metadata[key] for key in ("general.architecture", "general.name") if key in metadata]
    return [f"GGUF: {', '.join(known)}"] if known else []


def _entry(header: _Header) -> tuple[str, tuple[int, ...], int, int]:
    """Return the name, the shape, the type and the offset of the next tensor."""
    name = header.name()
    dimensions = int(header.take("I"))
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"tensor {name!r:.200}: found {dimensions} dimensions, expected at most 4")
    # The innermost dimension comes first.
    shape = tuple(int(header.take("Q")) for _ in range(dimensions))[::-1]
    return name, shape, int(header.take("I")), int(header.take("Q"))


def _count(
    found: list[tuple[str, tuple[int, ...], int, int]], wanted: Callable[[int], bool]
) -> str:
    """Return how many tensors are of each of some types: `2 of Q8_0, 1 of IQ2_XS`."""
    kinds = Counter(_QUANTISED.get(kind, f"type {kind}") for _, _, kind, _ in found if wanted(kind))
    return ", ".join(f"{count} of {name}" for name, count in kinds.most_common())


def _blocks_of(kind: int) -> BlockType | None:
    return BLOCK_TYPES.get(_QUANTISED.get(kind, ""))


def _stored(name: str, shape: tuple[int, ...], kind: int) -> tuple[str, TensorSpec]:
    """Return what a tensor is called here, and what lies in the file."""
    blocks = _blocks_of(kind)
    if blocks is None:
        return name, spec_of(_TYPES[kind], shape)
    if not shape or shape[-1] % blocks.elements:
        raise ValueError(
            f"found shape {shape} of {_QUANTISED[kind]}, whose blocks are of {blocks.elements}"
        )
    spec = spec_of("U8", (*shape[:-1], shape[-1] // blocks.elements * blocks.bytes))
    return f"{name}.{_QUANTISED[kind]}", spec


def _tensors(
    file: InputFile, found: list[tuple[str, tuple[int, ...], int, int]], begin: int
) -> dict[str, LazyTensor]:
    if unknown := _count(found, lambda kind: kind not in _TYPES and not _blocks_of(kind)):
        raise ValueError(
            f"found quantised tensors of types that are not read: {unknown}; surgery is done on "
            "the checkpoint that it was converted from, or on a dequantised one: llama-quantize "
            "--allow-requantize IN OUT BF16"
        )
    tensors: dict[str, LazyTensor] = {}
    problems: list[str] = []
    places = []
    for name, shape, kind, offset in found:
        if len(problems) > _MOST_PROBLEMS:
            break
        try:
            name, spec = _stored(name, shape, kind)
            position = begin + offset
            if position + spec.size_bytes > file.size_bytes:
                raise ValueError(
                    f"found it up to byte {position + spec.size_bytes}, where the file of "
                    f"{file.size_bytes} has ended"
                )
            if name in tensors:
                raise ValueError("found it twice")
        except ValueError as error:
            problems.append(f"{file.path}: tensor {name!r:.200}: {error}")
            continue
        tensors[name] = Stored(file, position, spec)
        places.append((position, position + spec.size_bytes, name))
    places.sort()
    for (_, end, name), (start, _, other) in pairwise(places):
        if start < end:
            problems.append(f"{file.path}: tensor {other!r:.200}: overlaps {name!r:.200}")
    if problems:
        raise at_most(problems, file.path)
    return tensors

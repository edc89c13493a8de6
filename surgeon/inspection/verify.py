"""Whether an output still is what its manifest says."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from surgeon.base.errors import CheckpointError
from surgeon.base.strict_json import read_json
from surgeon.base.tables import plural, shown
from surgeon.base.units import spoken_size
from surgeon.formats.fetched import open_input
from surgeon.formats.files import InputFile
from surgeon.formats.remains import MANIFEST_SUFFIX, WEIGHTS_SUFFIX, settled
from surgeon.formats.safetensors import open_safetensors
from surgeon.inspection.watching import Watch, unwatched
from surgeon.lazy import LazyTensor, Scratch, Stored, TensorSpec
from surgeon.manifest.model import (
    CheckpointEntry,
    Manifest,
    StateFile,
    TensorEntry,
    WeightFile,
    joined_sha256,
    read,
)
from surgeon.manifest.names import is_file, located, manifest_of, optimizer_of
from surgeon.output.blocks import COPY_BUFFER, blocks
from surgeon.output.checksums import Algorithm, Running
from surgeon.pictures.notebook import rows_shown
from surgeon.remote.paths import forget

Json = dict[str, Any]


@dataclass
class Verified:
    """What `verify` found; `mismatches` is a line for each difference."""

    manifest: Path
    tensors: int
    size_bytes: int = 0
    hashed: int = 0
    mismatches: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def verified(self) -> bool:
        """Whether the output is what its manifest says."""
        return not self.mismatches

    @property
    def checked(self) -> str:
        """Whether the values were checked, or only names, shapes, dtypes and layout."""
        return "tensors" if self.hashed else "header"

    def as_json(self) -> Json:
        """Return the answer as a document."""
        return {
            "manifest": str(self.manifest),
            "verified": self.verified,
            "checked": self.checked,
            "tensors": self.tensors,
            "bytes": self.size_bytes,
            "mismatches": self.mismatches,
        }

    def _repr_html_(self) -> str:
        title = f"{self.manifest}: {'verified' if self.verified else 'not what it was'}"
        lines = [(line,) for line in self.mismatches] or [(self.as_text(),)]
        return rows_shown(title, ("found",), lines, notes=self.notes)

    def __str__(self) -> str:
        return self.as_text()

    def as_text(self) -> str:
        """Return each mismatch, or a line that all is well."""
        if self.mismatches:
            return "\n".join(map(shown, self.mismatches))
        what = f"{plural(self.tensors, 'tensor')} ({spoken_size(self.size_bytes)})"
        if self.hashed:
            return f"{shown(str(self.manifest))}: {what} verified"
        return (
            f"{shown(str(self.manifest))}: {what}: only the header could be verified, since the "
            "manifest holds no checksums (--checksums none)"
        )


def find_manifest(output: Path) -> Path:
    """Return the manifest of a file, of a model folder, or the path itself if it is one."""
    try:
        path = located(output)
        is_there = path == output or path.exists()
    except OSError as error:
        raise CheckpointError(f"{output}: cannot be opened: {error.strerror}") from None
    if not is_there:
        what = "there is no manifest" if output.exists() else "no such file, and no manifest"
        raise CheckpointError(f"{output}: {what} beside it ({path.name})")
    return path


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; raises CheckpointError where it is none."""
    try:
        return read(Manifest, path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def verify(output: Path, workers: int, *, watch: Watch = unwatched) -> Verified:
    """Hash an output again and compare; raises CheckpointError where it has no manifest."""
    forget(output)
    note = settled(_output_of(output))
    path = find_manifest(output)
    manifest = read_manifest(path)
    found = Verified(path, len(manifest.tensors), notes=[f"{output}: {note}"] if note else [])
    checkpoint, state = manifest.checkpoint, manifest.optimizer_state
    if path == manifest_of(output) and is_file(output):  # all may have been renamed
        checkpoint = replace(checkpoint, file=output.name)
        state = replace(state, file=optimizer_of(output).name) if state else None
    tensors: dict[str, LazyTensor] = {}
    places: dict[str, str] = {}
    files: list[InputFile] = []
    try:
        for part in checkpoint.parts:
            file = _open(path, part.file, found)
            if file is not None:
                files.append(file)
                held = _header_checked(file, part, found)
                places |= dict.fromkeys(held, part.file)
                tensors |= held
        if checkpoint.files:
            _check_index(path.parent / checkpoint.file, checkpoint, places, found)
        if state:
            _check_optimizer_state(path, state, found)
        if len(files) == len(checkpoint.parts):
            _check_tensors(manifest.tensors, tensors, found, workers, watch)
    finally:
        for file in files:
            file.close()
    return found


def _output_of(path: Path) -> Path:
    """Return the output that a path names, which may be its manifest's."""
    stem = path.name.removesuffix(MANIFEST_SUFFIX)
    return path if stem in (path.name, "") else path.with_name(f"{stem}{WEIGHTS_SUFFIX}")


def _open(manifest: Path, name: str, found: Verified) -> InputFile | None:
    try:
        return open_input(manifest.parent / name)
    except CheckpointError as error:
        if os.path.lexists(manifest.parent / name):
            raise  # nobody knows whether it is what it should be
        found.mismatches += error.problems
        return None


def _header_checked(file: InputFile, part: WeightFile, found: Verified) -> dict[str, LazyTensor]:
    """Return the tensors of a file by the names that the manifest has: with those tied to them."""
    found.size_bytes += file.size_bytes
    if file.size_bytes != part.size_bytes:
        found.mismatches.append(
            f"{file.path}: has {file.size_bytes} bytes, the manifest says {part.size_bytes}"
        )
    try:
        checkpoint = open_safetensors(file)
    except CheckpointError as error:
        found.mismatches += error.problems
        return {}
    if checkpoint.header_sha256 != part.header_sha256:
        found.mismatches.append(
            f"{file.path}: its header has sha256 {checkpoint.header_sha256}, the manifest says "
            f"{part.header_sha256}"
        )
    return checkpoint.tensors


def _check_index(
    path: Path, checkpoint: CheckpointEntry, places: Mapping[str, str], found: Verified
) -> None:
    if joined_sha256(checkpoint.files) != checkpoint.header_sha256:
        found.mismatches.append(f"{found.manifest}: header_sha256 is not that of its files")
    try:
        weight_map = read_json(path)["weight_map"]
        wrong = [name for name, file in weight_map.items() if places.get(name) != file]
    except OSError as error:
        found.mismatches.append(f"{path}: cannot be read: {error.strerror}")
    except (ValueError, TypeError, KeyError, AttributeError):
        found.mismatches.append(f"{path}: not an index")
    else:
        found.mismatches += [
            f"{path}: '{name}' is not in '{weight_map[name]}'" for name in sorted(wrong)
        ]


def _check_optimizer_state(manifest: Path, stated: StateFile, found: Verified) -> None:
    file = _open(manifest, stated.file, found)
    if file is None:
        return
    try:
        digest = _hash(Stored(file, 0, TensorSpec("U8", (file.size_bytes,))), "sha256")
    finally:
        file.close()
    found.size_bytes += file.size_bytes
    if digest != stated.sha256:
        found.mismatches.append(
            f"{file.path}: has sha256 {digest}, the manifest says {stated.sha256}"
        )


def _check_tensors(
    stated: Mapping[str, TensorEntry],
    tensors: Mapping[str, LazyTensor],
    found: Verified,
    workers: int,
    watch: Watch,
) -> None:
    found.mismatches += [
        f"'{name}' is in the manifest only" for name in stated if name not in tensors
    ]
    found.mismatches += [
        f"'{name}' is not in the manifest" for name in tensors if name not in stated
    ]
    wanted: dict[tuple[int, Algorithm], tuple[list[str], LazyTensor, str]] = {}
    for name, entry in stated.items():
        if name not in tensors:
            continue
        spec = tensors[name].spec
        if (spec.dtype, spec.shape) != (entry.dtype, entry.shape):
            found.mismatches.append(
                f"'{name}' is {spec}, the manifest says {entry.dtype} {entry.shape}"
            )
            continue
        for algorithm, digest in _digests(entry):
            tensor = tensors[name]
            names, _, _ = wanted.setdefault((id(tensor), algorithm), ([], tensor, digest))
            names.append(name)
    found.hashed = len(wanted)
    total = sum(tensor.spec.size_bytes for _, tensor, _ in wanted.values())
    with watch(total) as done, ThreadPoolExecutor(workers) as pool:
        hashes = pool.map(lambda key: _hash(wanted[key][1], key[1]), wanted)
        for (_, algorithm), (names, tensor, digest), actual in zip(
            wanted, wanted.values(), hashes, strict=True
        ):
            if done:
                done(tensor.spec.size_bytes)
            if actual != digest:
                found.mismatches.append(
                    f"'{names[0]}' has {algorithm} {actual}, the manifest says {digest}"
                )


def _digests(entry: TensorEntry) -> Iterator[tuple[Algorithm, str]]:
    if entry.crc32 is not None:
        yield "crc32", entry.crc32
    if entry.sha256 is not None:
        yield "sha256", entry.sha256


def _hash(tensor: LazyTensor, algorithm: Algorithm) -> str:
    running = Running(algorithm)
    scratch, buffer = Scratch(), memoryview(bytearray(min(COPY_BUFFER, tensor.spec.size_bytes)))
    for piece in tensor.pieces(0, tensor.spec.count):
        for block in blocks(piece, scratch, buffer):
            running.update(block)
    return running.sha256 if algorithm == "sha256" else f"{running.crc32:08x}"

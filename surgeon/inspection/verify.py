"""Whether an output still is what its manifest says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from surgeon.base.errors import CheckpointError
from surgeon.base.tables import plural, shown
from surgeon.base.units import spoken_size
from surgeon.formats.files import InputFile
from surgeon.formats.safetensors import open_safetensors
from surgeon.lazy import ByteRange, LazyTensor, Stored, TensorSpec
from surgeon.output.checksums import Algorithm, Running

Json = dict[str, Any]
_ALGORITHMS: tuple[Algorithm, ...] = ("crc32", "sha256")
_BUFFER = 1 << 20
_FOLDER_MANIFEST = "surgeon.manifest.json"


@dataclass
class Verified:
    """What `verify` found; `mismatches` is a line for each difference."""

    manifest: Path
    tensors: int
    size_bytes: int = 0
    hashed: int = 0
    mismatches: list[str] = field(default_factory=list)

    @property
    def checked(self) -> str:
        """Whether the values were checked, or only names, shapes, dtypes and layout."""
        return "tensors" if self.hashed else "header"

    def as_json(self) -> Json:
        """Return the answer as a document."""
        return {
            "manifest": str(self.manifest),
            "verified": not self.mismatches,
            "checked": self.checked,
            "tensors": self.tensors,
            "bytes": self.size_bytes,
            "mismatches": self.mismatches,
        }

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
    if output.is_dir():
        path = output / _FOLDER_MANIFEST
    elif output.name.endswith(".safetensors.index.json"):
        path = output.with_name(_FOLDER_MANIFEST)
    elif output.suffix == ".json":
        path = output
    else:
        path = output.with_suffix(".manifest.json")
    if path != output and not path.exists():
        what = "there is no manifest" if output.exists() else "no such file, and no manifest"
        raise CheckpointError(f"{output}: {what} beside it ({path.name})")
    return path


def read_manifest(path: Path) -> Json:
    """Read as much of a manifest as verification looks at; raises CheckpointError."""
    try:
        manifest = json.loads(_read(path))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: not JSON") from None
    match manifest:
        case {
            "surgeon_manifest": 1,
            "checkpoint": dict(checkpoint),
            "tensors": dict(tensors),
        } if (
            all(_is_file(part) for part in _parts(checkpoint))
            and all(_is_tensor(entry) for entry in tensors.values())
            and _is_state(manifest.get("optimizer_state"))
        ):
            return dict(manifest)
    raise CheckpointError(f"{path}: not a manifest of version 1")


def _read(path: Path) -> bytes:
    file = InputFile(path)
    try:
        return file.read(0, file.size_bytes)
    finally:
        file.close()


def _parts(checkpoint: Json) -> list[Any]:
    parts = checkpoint.get("files", [])
    return [checkpoint, *parts] if isinstance(parts, list) else [None]


def _is_file(part: object) -> bool:
    match part:
        case {"file": str(), "bytes": int(), "header_sha256": str()}:
            return True
    return False


def _is_tensor(entry: object) -> bool:
    match entry:
        case {"dtype": str(), "shape": list()}:
            return True
    return False


def _is_state(entry: object) -> bool:
    match entry:
        case None | {"file": str(), "sha256": str()}:
            return True
    return False


def verify(output: Path, workers: int) -> Verified:
    """Hash an output again and compare; raises CheckpointError where it has no manifest."""
    path = find_manifest(output)
    manifest = read_manifest(path)
    found = Verified(path, len(manifest["tensors"]))
    checkpoint = manifest["checkpoint"]
    parts = checkpoint.get("files", [checkpoint])
    if len(parts) == 1 and output.suffix == ".safetensors":
        parts = [{**checkpoint, "file": output.name}]  # both may have been renamed
    tensors: dict[str, LazyTensor] = {}
    places: dict[str, str] = {}
    files: list[InputFile] = []
    try:
        for part in parts:
            file = _open(path, part["file"], found)
            if file is not None:
                files.append(file)
                held = _header_checked(file, part, found)
                places |= dict.fromkeys(held, part["file"])
                tensors |= held
        if "files" in checkpoint:
            _check_index(path.parent / checkpoint["file"], checkpoint, places, found)
        if state := manifest.get("optimizer_state"):
            if output.suffix == ".safetensors":
                beside = output.with_suffix(".optimizer.safetensors")
                state = {**state, "file": beside.name}
            _check_optimizer_state(path, state, found)
        if len(files) == len(parts):
            _check_tensors(manifest["tensors"], tensors, found, workers)
    finally:
        for file in files:
            file.close()
    return found


def _open(manifest: Path, name: str, found: Verified) -> InputFile | None:
    if name != Path(name).name:
        raise CheckpointError(f"{manifest}: '{name}' is not the name of a file beside it")
    try:
        return InputFile(manifest.parent / name)
    except CheckpointError as error:
        found.mismatches += error.problems
        return None


def _header_checked(file: InputFile, part: Json, found: Verified) -> dict[str, LazyTensor]:
    """Return the tensors of a file by the names that the manifest has: with those tied to them."""
    found.size_bytes += file.size_bytes
    if file.size_bytes != part["bytes"]:
        found.mismatches.append(
            f"{file.path}: has {file.size_bytes} bytes, the manifest says {part['bytes']}"
        )
    try:
        checkpoint = open_safetensors(file)
    except CheckpointError as error:
        found.mismatches += error.problems
        return {}
    if checkpoint.header_sha256 != part["header_sha256"]:
        found.mismatches.append(
            f"{file.path}: its header has sha256 {checkpoint.header_sha256}, the manifest says "
            f"{part['header_sha256']}"
        )
    return checkpoint.tensors


def _check_index(path: Path, checkpoint: Json, places: Mapping[str, str], found: Verified) -> None:
    joined = "".join(part["header_sha256"] for part in checkpoint["files"])
    if hashlib.sha256(joined.encode()).hexdigest() != checkpoint["header_sha256"]:
        found.mismatches.append(f"{found.manifest}: header_sha256 is not that of its files")
    try:
        weight_map = json.loads(_read(path))["weight_map"]
        wrong = [name for name, file in weight_map.items() if places.get(name) != file]
    except CheckpointError as error:
        found.mismatches += error.problems
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        found.mismatches.append(f"{path}: not an index")
    else:
        found.mismatches += [
            f"{path}: '{name}' is not in '{weight_map[name]}'" for name in sorted(wrong)
        ]


def _check_optimizer_state(manifest: Path, stated: Json, found: Verified) -> None:
    file = _open(manifest, stated["file"], found)
    if file is None:
        return
    try:
        digest = _hash(Stored(file, 0, TensorSpec("U8", (file.size_bytes,))), "sha256")
    finally:
        file.close()
    found.size_bytes += file.size_bytes
    if digest != stated["sha256"]:
        found.mismatches.append(
            f"{file.path}: has sha256 {digest}, the manifest says {stated['sha256']}"
        )


def _check_tensors(
    stated: Json, tensors: Mapping[str, LazyTensor], found: Verified, workers: int
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
        if [spec.dtype, list(spec.shape)] != [entry["dtype"], entry["shape"]]:
            found.mismatches.append(
                f"'{name}' is {spec}, the manifest says {entry['dtype']} {tuple(entry['shape'])}"
            )
            continue
        for algorithm, digest in _digests(entry):
            tensor = tensors[name]
            names, _, _ = wanted.setdefault((id(tensor), algorithm), ([], tensor, digest))
            names.append(name)
    found.hashed = len(wanted)
    with ThreadPoolExecutor(workers) as pool:
        hashes = pool.map(lambda key: _hash(wanted[key][1], key[1]), wanted)
        for (_, algorithm), (names, _, digest), actual in zip(
            wanted, wanted.values(), hashes, strict=True
        ):
            if actual != digest:
                found.mismatches.append(
                    f"'{names[0]}' has {algorithm} {actual}, the manifest says {digest}"
                )


def _digests(entry: Json) -> Iterator[tuple[Algorithm, str]]:
    for algorithm in _ALGORITHMS:
        if isinstance(digest := entry.get(algorithm), str):
            yield algorithm, digest


def _hash(tensor: LazyTensor, algorithm: Algorithm) -> str:
    running = Running(algorithm)
    buffer = np.empty(min(_BUFFER, tensor.spec.size_bytes), np.uint8).data
    for piece in tensor.pieces(0, tensor.spec.count):
        assert isinstance(piece, ByteRange)  # as all pieces of a safetensors file are
        for start in range(0, piece.size_bytes, _BUFFER):
            block = buffer[: min(_BUFFER, piece.size_bytes - start)]
            piece.file.read_into(piece.offset + start, block)
            running.update(block)
    return running.sha256 if algorithm == "sha256" else f"{running.crc32:08x}"

"""Open folders of models and adapters: one weight file, or shards and the index that maps names."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from surgeon.base.elsewhere import Elsewhere
from surgeon.base.errors import CheckpointError, listed
from surgeon.base.files import is_there, link_out, names_in, read_regular
from surgeon.base.strict_json import parse_object
from surgeon.formats.checkpoint import DISTRIBUTED, Checkpoint, at_most
from surgeon.formats.foreign import SAVE_ALL_RANKS
from surgeon.lazy import LazyTensor
from surgeon.remote.paths import fetch_starts

OpenFile = Callable[[Path], Checkpoint]
# Given the names of an index, returns those that somebody wants to see.
Wanted = Callable[[Collection[str]], Collection[str]]
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_INDEXES = tuple(f"{name}.index.json" for name in _WEIGHTS)
# A folder that holds a model, too, is a model's.
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_CONFIGS = ("config.json", "adapter_config.json")
# The names that weights have in model folders, a variant's among them: `model.fp16.safetensors`.
_MODEL_FILE = re.compile(
    r"(model|pytorch_model|adapter_model)(\.[a-z0-9_]+)?\.(safetensors|bin)(\.index\.json)?"
)
# An index of 600 000 tensors takes 70 MB.
_LONGEST_INDEX = 250_000_000
# What is the same weights in other formats, or is no part of this model.
_OTHER_WEIGHTS = (
    "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin",
    "pytorch_model*.bin.index.json", "consolidated*", "*.gguf", "*.onnx", "*.onnx_data", "*.ckpt",
    "*.h5", "*.keras", "*.msgpack",
    "*.ot", "*.tflite", "*.mlmodel", "*.mlpackage", "openvino_model*", "*.nemo", "*.npz",
)  # fmt: skip
_OTHER_FOLDERS = (
    "original", "onnx", "openvino", "coreml", "checkpoint-*", "global_step*",
    "pytorch_model_fsdp_*", "optimizer_*", ".git",
)  # fmt: skip
_OF_A_RANK = re.compile(r"rank[-_.]?\d+.*\.(bin|ckpt|pt|pth)$")


def is_distributed(folder: Path) -> bool:
    """Tell a torch distributed checkpoint from a model's folder, which may hold one besides."""
    return is_there(folder / DISTRIBUTED) and not has_weights(folder)


def has_weights(folder: Path) -> bool:
    """Say whether a folder is a model's, or an adapter's."""
    return any(is_there(folder / name) for name in (*_WEIGHTS, *_INDEXES, *_ADAPTERS))


def open_folder(folder: Path, open_file: OpenFile, wanted: Wanted | None = None) -> Checkpoint:
    """Open the weights of a model folder; raises CheckpointError where they are not clear."""
    try:
        there = names_in(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be listed: {error.strerror}") from None
    found = [name for name in (*_WEIGHTS, *_INDEXES) if name in there]
    # As transformers does where there are both.
    found = [name for name in found if ".safetensors" in name] or found
    found = found or [name for name in _ADAPTERS if name in there][:1]
    if not found:
        holds = listed(there, 10) if there else "nothing"
        expected = ", ".join((*_WEIGHTS, *_INDEXES, *_ADAPTERS))
        ranks = [name for name in there if _OF_A_RANK.search(name)]
        hint = f"; a file for each rank holds parts alone; {SAVE_ALL_RANKS}" if ranks else ""
        raise CheckpointError(f"{folder}: found none of {expected}; it holds {holds}{hint}")
    if len(found) > 1:
        raise CheckpointError(
            f"{folder}: found {' and '.join(found)}, expected one of them; name the one that is "
            f"meant: {folder / found[0]}"
        )
    path = folder / found[0]
    if found[0] in _INDEXES:
        checkpoint = open_index(path, open_file, wanted)
    elif problem := leaves_folder(path):
        raise CheckpointError(problem)
    else:
        checkpoint = open_file(path)
    return in_folder(replace(checkpoint, path=folder), folder)


def model_folder_of(path: Path) -> Path | None:
    """Return the folder of a weight file that was named, if that is a model's."""
    if not _MODEL_FILE.fullmatch(path.name):
        return None
    folder = path.parent
    return folder if any(is_there(folder / name) for name in _CONFIGS) else None


def in_folder(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Return the checkpoint of a model folder, with what lies there besides and is not read."""
    read = {path.name for path in checkpoint.weight_files}
    try:
        entries = names_in(folder)
    except OSError as error:
        checkpoint.close()
        raise CheckpointError(f"{folder}: cannot be listed: {error.strerror}") from None
    left = tuple(
        name
        for name in entries
        if name not in read and name not in _ADAPTERS and _is_other(folder / name)
    )
    notes = checkpoint.notes
    shown = [name for name in left if name != ".git"]
    if shown:
        notes = (*notes, f"left behind, since they are other weights: {listed(shown)}")
    return replace(checkpoint, folder=folder, left_behind=left, notes=notes)


def _is_other(path: Path) -> bool:
    if not any(fnmatch(path.name, pattern) for pattern in (*_OTHER_FOLDERS, *_OTHER_WEIGHTS)):
        return False
    try:
        is_folder = path.is_dir()
    except OSError:  # a link that leads to itself
        is_folder = False
    kinds = _OTHER_FOLDERS if is_folder else _OTHER_WEIGHTS
    return any(fnmatch(path.name, pattern) for pattern in kinds)


def open_index(path: Path, open_file: OpenFile, wanted: Wanted | None = None) -> Checkpoint:
    """Open the shards that an index names; raises CheckpointError listing all that differs.

    Of a folder elsewhere those alone that hold what is wanted.
    """
    weight_map, total_size, header = _index(path)
    count = len(set(weight_map.values()))
    if wanted is not None and isinstance(path, Elsewhere):
        files = {weight_map[name] for name in wanted(weight_map) if name in weight_map}
        weight_map = {name: file for name, file in weight_map.items() if file in files}
        total_size = total_size if len(files) == count else None
    folder = path.parent
    names = sorted(set(weight_map.values()))
    problems: list[str] = []
    shards: dict[str, Checkpoint] = {}
    try:
        fetch_starts([folder / name for name in names if is_there(folder / name)])
        for name in names:
            if problem := _misplaced(folder, name):
                problems.append(f"{path}: {problem}")
                continue
            try:
                shards[name] = open_file(folder / name)
            except CheckpointError as error:
                problems += error.problems
        where: dict[str, str] = {}
        for name, shard in shards.items():
            where.update(dict.fromkeys(shard.tensors, name))
        if weight_map != where or len(where) != sum(len(s.tensors) for s in shards.values()):
            problems += [f"{path}: {line}" for line in _differences(weight_map, shards)]
        if not problems and (line := _wrong_size(shards, total_size)):
            problems.append(f"{path}: {line}")
        if problems:
            raise at_most(problems, path)
    except BaseException:
        for shard in shards.values():
            shard.close()
        raise
    joined = _joined(path, shards, where, header)
    if len(names) == count:
        return joined
    note = f"opened {len(names)} of {count} shards: those that hold what was asked for"
    return replace(joined, notes=(*joined.notes, note))


def _index(path: Path) -> tuple[dict[str, str], float | None, bytes]:
    """Return the weight map, the total size where it is stated, and the bytes of the index."""
    try:
        text = read_regular(path, _LONGEST_INDEX)
        value = parse_object(text.strip(), most_bytes=_LONGEST_INDEX)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    weight_map, metadata = value.get("weight_map"), value.get("metadata", {})
    if "surgeon" in value and "steps" in value:
        raise CheckpointError(f"{path}: is a recipe, not a checkpoint; the recipe comes first")
    if not isinstance(weight_map, dict) or not all(type(v) is str for v in weight_map.values()):
        raise CheckpointError(
            f"{path}: found no 'weight_map' of names to files, expected the index of a model folder"
        )
    total_size = metadata.get("total_size") if isinstance(metadata, dict) else metadata
    if total_size is not None and type(total_size) not in (int, float):
        raise CheckpointError(
            f"{path}: found total_size {total_size!r}, expected a number of bytes"
        )
    return weight_map, total_size, text


def leaves_folder(path: Path) -> str:
    """Say what is wrong with a link, with its path; see `link_out`."""
    problem = link_out(path)
    return f"{path}: {problem}" if problem else ""


def _misplaced(folder: Path, name: str) -> str:
    """Say what is wrong with where a shard is said to be."""
    if Path(name).name != name or name in ("", "..") or "\0" in name:
        return f"shard {name!r}: found a path, expected the name of a file in the folder"
    if not _is_reached(folder / name):
        return f"shard {name!r}: it is named in the index but missing in the folder"
    return leaves_folder(folder / name)


def _is_reached(path: Path) -> bool:
    # Path.exists raises where it may not look.
    return is_there(path) and (isinstance(path, Elsewhere) or os.path.exists(path))  # noqa: PTH110


def _differences(weight_map: dict[str, str], shards: dict[str, Checkpoint]) -> list[str]:
    """List where the index and the shards disagree on which tensors there are, and where."""
    holders: dict[str, list[str]] = {}
    for shard, checkpoint in shards.items():
        tied = {id(checkpoint.tensors[name]) for name in checkpoint.tensors if name in weight_map}
        for name, tensor in checkpoint.tensors.items():
            if name in weight_map or id(tensor) not in tied:
                holders.setdefault(name, []).append(shard)
    lines = []
    for name, found in holders.items():
        if len(found) > 1:
            lines.append(f"tensor {name!r}: found in shards {' and '.join(found)}, expected one")
        elif name not in weight_map:
            lines.append(f"tensor {name!r}: found in shard {found[0]}, but not in the index")
        elif weight_map[name] != found[0]:
            lines.append(f"tensor {name!r}: found in {found[0]}, expected in {weight_map[name]}")
    lines += [
        f"tensor {name!r}: expected in {shard}, found in no shard"
        for name, shard in weight_map.items()
        if name not in holders and shard in shards
    ]
    return lines


def _wrong_size(shards: dict[str, Checkpoint], total_size: float | None) -> str:
    """Compare the stated size with tied tensors counted once and counted each: both are in use."""
    tensors = [tensor for shard in shards.values() for tensor in shard.tensors.values()]
    each = sum([tensor.spec.size_bytes for tensor in tensors])
    if total_size in (None, each):
        return ""
    once = sum(tensor.spec.size_bytes for tensor in {id(t): t for t in tensors}.values())
    if total_size == once:
        return ""
    return f"found total_size {total_size}, expected {once}; correct it or take it out"


def _joined(
    path: Path, shards: dict[str, Checkpoint], where: dict[str, str], index: bytes
) -> Checkpoint:
    tensors: dict[str, LazyTensor] = {}
    metadata: dict[str, str] = {}
    notes: list[str] = []
    for name, shard in shards.items():
        tensors.update(shard.tensors)
        for key, value in shard.metadata.items():
            # What surgeon says of itself holds a fingerprint, and goes into no other file.
            if metadata.setdefault(key, value) != value and key != "surgeon":
                notes.append(f"{name}: metadata {key!r} differs from an earlier shard's; left out")
        notes += [f"{name}: {note}" for note in shard.notes]
    hashes = "".join(shard.header_sha256 for shard in shards.values())
    return Checkpoint(
        path=path,
        tensors=tensors,
        metadata=metadata,
        header_sha256=hashlib.sha256(hashes.encode()).hexdigest(),
        size_bytes=sum(shard.size_bytes for shard in shards.values()),
        notes=tuple(notes),
        records=tuple(record for shard in shards.values() for record in shard.records),
        weight_files=(path, *(file for shard in shards.values() for file in shard.weight_files)),
        folder=path.parent,
        shards=where,
        safetensors=tuple(file for shard in shards.values() for file in shard.safetensors),
        closers=tuple(closer for shard in shards.values() for closer in shard.closers),
    )

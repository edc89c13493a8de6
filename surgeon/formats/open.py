"""Readers of checkpoints: headers only, told apart by magic bytes, nothing ever executed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from surgeon.base.collection import collection_paused
from surgeon.base.elsewhere import Elsewhere
from surgeon.base.errors import CheckpointError
from surgeon.base.units import spoken_size
from surgeon.formats.checkpoint import Checkpoint, Contents
from surgeon.formats.containers import choose
from surgeon.formats.fetched import open_input
from surgeon.formats.files import InputFile
from surgeon.formats.folders import (
    Wanted,
    has_weights,
    in_folder,
    is_distributed,
    leaves_folder,
    model_folder_of,
    open_folder,
    open_index,
)
from surgeon.formats.foreign import foreign, is_foreign
from surgeon.formats.optimizers import SavedState, state_in, state_of_ours
from surgeon.formats.remains import settled
from surgeon.formats.safetensors import has_header, open_safetensors
from surgeon.formats.wrappers import renaming, without_count
from surgeon.lazy import walk
from surgeon.remote.locations import is_url, split_fragment, taken
from surgeon.remote.paths import forget, path_of

# Enough for every magic number that `foreign` knows.
_START = 512
# Tensors may be views: of GGUF's smallest codes 16 times as large, expanded ones as they like.
_ALWAYS_ALLOWED, _MOST_TIMES = 1 << 30, 32
# What a file of torch before 1.6 begins with, once pickled.
_LEGACY = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")


def open_checkpoint(location: str, wanted: Wanted | None = None) -> Checkpoint:
    """Open `in.pt`, `in.pt#model.ema`, a safetensors file, a model folder or its index file.

    Reads headers only; of an index elsewhere, with `wanted`, of those shards alone that hold such
    names. Raises CheckpointError, one line per problem.
    """
    with collection_paused():
        path, inner = _split(location)
        note = settled(path)
        checkpoint = _open(path, inner, wanted)
    return replace(checkpoint, notes=(note, *checkpoint.notes)) if note else checkpoint


@contextmanager
def _closed_on_failure(opened: InputFile | Contents) -> Iterator[None]:
    try:
        yield
    except BaseException:
        opened.close()
        raise


def _open(path: Path, inner: str, wanted: Wanted | None) -> Checkpoint:
    try:
        if not isinstance(path, Elsewhere):
            os.lstat(path)
        elif not path.exists():
            raise FileNotFoundError
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from None
    if not _is_folder(path):
        checkpoint = _named(path, inner, wanted)
    elif contents := _folder_of_parts(path):
        with _closed_on_failure(contents):
            checkpoint = _torch(contents, inner)
    elif inner:
        raise CheckpointError(f"{path}: a folder has no containers; leave '#{inner}' away")
    else:
        checkpoint = open_folder(path, _open_file, wanted)
    try:
        _require_values(checkpoint)
        _require_bytes(checkpoint)
    except CheckpointError:
        checkpoint.close()
        raise
    return _unwrapped(checkpoint)


def _named(path: Path, inner: str, wanted: Wanted | None) -> Checkpoint:
    """Open a file; of one that is a model folder's the folder is known, and goes along."""
    folder = model_folder_of(path)
    if folder is not None and (problem := leaves_folder(path)):
        raise CheckpointError(problem)
    checkpoint = _open_file(path, inner, wanted)
    return checkpoint if folder is None else in_folder(checkpoint, folder)


def _require_values(checkpoint: Checkpoint) -> None:
    """Raise where most tensors are what DeepSpeed leaves where the values are in other files."""
    empty = [name for name, tensor in checkpoint.tensors.items() if tensor.spec.shape == (0,)]
    if len(empty) > 1 and 2 * len(empty) > len(checkpoint.tensors):
        raise CheckpointError(
            f"{checkpoint.path}: found {len(empty)} of {len(checkpoint.tensors)} tensors of shape "
            "(0,), which DeepSpeed's ZeRO stage 3 leaves in place of parameters: the ranks' files "
            "hold them; name the folder that holds 'latest' or zero_pp_rank_*"
        )


def _require_bytes(checkpoint: Checkpoint) -> None:
    """Raise where a file's few bytes are said to be very many: who reads them would never end."""
    owned = {id(tensor): tensor.spec.size_bytes for tensor in checkpoint.tensors.values()}
    total, most = sum(owned.values()), _ALWAYS_ALLOWED + _MOST_TIMES * checkpoint.size_bytes
    if total > most:
        name = max(checkpoint.tensors, key=lambda name: checkpoint.tensors[name].spec.size_bytes)
        raise CheckpointError(
            f"{checkpoint.path}: found tensors of {spoken_size(total)} that are views of "
            f"{spoken_size(checkpoint.size_bytes)}, '{name}' of {checkpoint.tensors[name].spec} "
            "the largest; save copies of expanded tensors (.clone())"
        )


def _unwrapped(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint without what wrappers of modules put into its names."""
    tensors, notes = without_count(checkpoint.tensors)
    renamed, changes = renaming(tensors)
    notes += changes
    if not notes:
        return checkpoint
    is_same = all(name == now for name, now in renamed.items())
    return replace(
        checkpoint,
        tensors={renamed[name]: tensor for name, tensor in tensors.items()},
        shards={renamed[name]: shard for name, shard in checkpoint.shards.items()
                if name in renamed},
        notes=(*checkpoint.notes, *notes),
        safetensors=checkpoint.safetensors if is_same else (),
    )  # fmt: skip


def open_contents(path: Path) -> Contents:
    """Return everything that a torch file holds, optimizer states and all.

    Raises CheckpointError where it is no torch file, or refers to what could run code.
    """
    file = open_input(path)
    with _closed_on_failure(file):
        start = file.read(0, min(_START, file.size_bytes))
        if not _is_torch(start):
            raise CheckpointError(f"{path}: found {foreign(start)[0]}, expected a torch file")
        return _contents(file, start)


def open_optimizer(location: str) -> SavedState:
    """Open an optimizer's state: `in.pt#optimizer`, or a safetensors file that surgeon wrote.

    Reads headers only. Raises CheckpointError, one line per problem.
    """
    path, inner = _split(location)
    if _is_folder(path):
        with collection_paused():
            if contents := _folder_of_parts(path):
                with _closed_on_failure(contents):
                    return state_in(contents, inner)
    file = open_input(path)
    with _closed_on_failure(file), collection_paused():
        start = file.read(0, min(_START, file.size_bytes))
        if _is_torch(start):
            return state_in(_contents(file, start), inner)
        if inner or not has_header(file.size_bytes, start) or is_foreign(start):
            what = f"no container {inner!r}" if inner else foreign(start)[0]
            raise CheckpointError(f"{path}: found {what}, expected an optimizer's state")
        return state_of_ours(open_safetensors(file))


def _split(location: str) -> tuple[Path, str]:
    """Split `in.pt#model.ema` at the last '#' before which there is a file."""
    if is_url(location):
        place, inner = split_fragment(taken(location))
        forget(fetched := path_of(place))
        return fetched, inner
    path, end = location, len(location)
    while not os.path.exists(path):  # noqa: PTH110 (Path.exists raises where it may not look)
        end = location.rfind("#", 0, end)
        if end < 0:
            name, _, inner = location.rpartition("#")
            return (Path(name), inner) if name else (Path(location), "")
        path = location[:end]
    return Path(path), location[end + 1 :]


def _is_folder(path: Path) -> bool:
    if isinstance(path, Elsewhere):
        return path.is_dir()
    return os.path.isdir(path)  # noqa: PTH112 (Path.is_dir raises where it may not look)


def _is_torch(start: bytes) -> bool:
    return start.startswith(b"PK") or _is_legacy(start)


def _is_legacy(start: bytes) -> bool:
    return start.startswith(b"\x80") and _LEGACY in start[:24]


def _open_file(path: Path, inner: str = "", wanted: Wanted | None = None) -> Checkpoint:
    """Open one file by its first bytes."""
    file = open_input(path)
    with _closed_on_failure(file):
        start = file.read(0, min(_START, file.size_bytes))
        if _is_torch(start):
            return _torch(_contents(file, start), inner)
        if inner:
            raise CheckpointError(
                f"{path}: only torch files have containers; leave '#{inner}' away"
            )
        if start.startswith(b"GGUF"):
            from surgeon.formats.gguf import open_gguf

            return open_gguf(file)
        if has_header(file.size_bytes, start) and not is_foreign(start):
            return open_safetensors(file)
        if not (start.lstrip().startswith(b"{") and b'"' in start):
            what, hint = foreign(start)
            raise CheckpointError(f"{path}: found {what}, expected safetensors or torch; {hint}")
    file.close()
    return open_index(path, _open_file, wanted)


def _contents(file: InputFile, start: bytes) -> Contents:
    from surgeon.formats.torch_legacy import read_legacy

    try:
        return read_legacy(file) if _is_legacy(start) else _archived(file)
    except ValueError as error:
        raise CheckpointError(f"{file.path}: {error}") from None


def _archived(file: InputFile) -> Contents:
    """Return what a torch archive holds; raises ValueError with what is wrong with it."""
    # Here, since most files are not torch's.
    from surgeon.formats.archives import read_archive

    value, world, data = read_archive(file)
    return Contents(
        path=file.path,
        value=value,
        header_sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=file.size_bytes,
        origins=world.origins,
        close=file.close,
        weight_files=(file.path,),
        notes=world.left(),
    )


def _folder_of_parts(folder: Path) -> Contents | None:
    """Return what a folder holds that the ranks of one run saved; None of any other folder."""
    if isinstance(folder, Elsewhere):
        if is_distributed(folder):
            raise CheckpointError(
                f"{folder}: is a distributed checkpoint, which is read from a disk of this machine "
                "alone; copy it here"
            )
        return None
    if is_distributed(folder):
        from surgeon.formats.archives import Archives
        from surgeon.formats.distributed import open_distributed
        from surgeon.formats.opcodes import read as read_pickle

        return open_distributed(folder, read_pickle, Archives())
    if not has_weights(folder):
        from surgeon.formats.deepspeed import open_deepspeed, tag_folder

        if (inner := tag_folder(folder)) is not None:
            return open_deepspeed(inner, open_contents)
    return None


def _torch(contents: Contents, inner: str) -> Checkpoint:
    tensors, notes = choose(contents.value, inner, str(contents.path))
    origins = contents.origins
    held = [form for tensor in tensors.values() for form in walk(tensor) if form in origins]
    used = {id(origins[form]): origins[form] for form in held}
    return Checkpoint(
        path=contents.path,
        tensors=tensors,
        header_sha256=contents.header_sha256,
        size_bytes=contents.size_bytes,
        notes=(*notes, *contents.notes),
        records=tuple(used.values()),
        contents=contents,
        weight_files=contents.weight_files,
        closers=(contents.close,),
    )

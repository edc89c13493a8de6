"""What workers do: write their parts of an output, learn of tensors, look at checks and files."""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from surgeon import __version__
from surgeon.base.errors import CheckpointError, SurgeonError
from surgeon.base.files import reading
from surgeon.draft import Check
from surgeon.formats.checkpoint import Record
from surgeon.lazy import LazyTensor, WholeTensor
from surgeon.lazy.apart import learn, learners, tell
from surgeon.numeric.dtypes import Array
from surgeon.output.blocks import COPY_BUFFER
from surgeon.output.calls import allocate, write_all
from surgeon.output.checksums import Algorithm, Running
from surgeon.output.cluster.pickling import unpacked
from surgeon.output.execute import Executor, Options, Tally
from surgeon.output.layout import OutputFile
from surgeon.output.units import Batch, Done, Unit, UnitWriter

# Of each input, so many bytes are compared: the header, or most of it.
_HEAD_BYTES = 64 << 10
HERE = f"surgeon {__version__}, Python {sys.version_info[0]}.{sys.version_info[1]}, NumPy " + (
    np.__version__
)


@dataclass(frozen=True)
class Found:
    """What a task made of one part: of each tensor, in the part's order, what is known of it."""

    tensors: list[tuple[str, Done]]


@dataclass(frozen=True)
class Portion:
    """What is to be written of a file, all that decides about its bytes: a task's key is its hash.

    A `file` is made whole, and a `header` is given where it is hashed whole. `facts` are what is
    known of tensors, by the number of the unit that they begin with here.
    """

    units: tuple[Unit, ...]
    file: OutputFile | None = None
    header: bytes | None = None
    facts: Mapping[int, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Where:
    """Where a portion goes.

    A whole file is made in `folder`, under a name of its own, and moved to `path` once it is
    complete; others are parts of the file of this `inode`. What is linked is there, and only read.
    `earlier` is what an earlier run said of it, and what may still be so.
    """

    path: str
    folder: str = ""
    inode: int = 0
    is_linked: bool = False
    earlier: Found | None = None


@dataclass(frozen=True)
class Answer:
    """What a task gave, and the seconds of the processor that it took."""

    value: Any
    seconds: float = 0.0
    # Where it failed: the kind of error, its lines, and the system's number for it.
    failed: type[SurgeonError] | None = None
    problems: tuple[str, ...] = ()
    errno: int = 0
    worker: str = ""


def answered(
    work: Callable[[Any, Algorithm, Any], Any], data: bytes, algorithm: Algorithm, where: Any,
    software: str,
) -> Answer:  # fmt: skip
    """Do something with what was sent; what goes wrong is an answer too."""
    from distributed import get_worker

    found = _answered(work, data, algorithm, where, software)
    return replace(found, worker=get_worker().address)


def _answered(
    work: Callable[[Any, Algorithm, Any], Any], data: bytes, algorithm: Algorithm, where: Any,
    software: str,
) -> Answer:  # fmt: skip
    began = process_time()
    if software != HERE:
        problem = f"this worker has {HERE}, and the run {software}"
        return Answer(None, 0, CheckpointError, (problem,))
    try:
        return Answer(work(unpacked(data), algorithm, where), process_time() - began)
    except SurgeonError as error:
        return Answer(None, 0, type(error), error.problems)
    except MemoryError:
        return Answer(None, 0, SurgeonError, ("there is not enough memory for it on a worker",))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        return Answer(None, 0, SurgeonError, (f"{reason}{where}",), error.errno or -1)
    except ImportError as error:
        return Answer(
            None, 0, CheckpointError, (f"a worker has not what the recipe uses: {error}",)
        )


@lru_cache(maxsize=8)
def _writer(algorithm: Algorithm) -> UnitWriter:
    return UnitWriter(algorithm)


def written(portions: Sequence[Portion], algorithm: Algorithm, where: list[Where]) -> list[Found]:
    """Write parts of an output."""
    return [_written(*pair, algorithm) for pair in zip(portions, where, strict=True)]


def _written(portion: Portion, where: Where, algorithm: Algorithm) -> Found:
    if where.earlier is not None and _is_still_there(portion, where, where.earlier):
        return where.earlier
    if where.is_linked:
        return _by_units(portion, None, algorithm)
    if portion.file is not None:
        return _whole(portion, where, portion.file, algorithm)
    descriptor = os.open(where.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_ino != where.inode:
            raise CheckpointError(f"{where.path}: is of another run by now, or not shared")
        found = _by_units(portion, descriptor, algorithm)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return found


def _whole(portion: Portion, where: Where, file: OutputFile, algorithm: Algorithm) -> Found:
    """Make a file under a name that no other attempt has; two of them may run where one is lost."""
    attempt = Path(where.folder, f"{file.name}.{uuid.uuid4().hex}")
    descriptor = os.open(attempt, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        allocate(descriptor, file.size_bytes)
        write_all(descriptor, memoryview(file.header), 0)
        found = _by_units(portion, descriptor, algorithm)
        tally = Tally([file], algorithm)
        for name, done in found.tensors:
            tally.add(file.name, name, done, is_there=False)
        tally.complete(file, descriptor)
        os.fsync(descriptor)
        attempt.rename(where.path)
    except BaseException:
        with suppress(OSError):
            attempt.unlink()
        raise
    finally:
        os.close(descriptor)
    return found


def _by_units(portion: Portion, descriptor: int | None, algorithm: Algorithm) -> Found:
    writer, found = _writer(algorithm), []
    starts = sorted({0, *portion.facts})
    for first, last in zip(starts, [*starts[1:], len(portion.units)], strict=True):
        units = portion.units[first:last]
        # What is known of a tensor is forgotten with the next one.
        if facts := portion.facts.get(first):
            tell(learners(units[0].tensor), facts, writer.scratch)
        found += writer.write(Batch("", units, descriptor, portion.header))
    return Found(joined(portion.units, found))


def joined(units: Sequence[Unit], found: Sequence[Done]) -> list[tuple[str, Done]]:
    """Return what is known of each tensor, of which there may be several units."""
    tensors: dict[str, Done] = {}
    for unit, done in zip(units, found, strict=True):
        before = tensors.get(unit.name)
        tensors[unit.name] = before.then(done) if before else done
    return list(tensors.items())


def _is_still_there(portion: Portion, where: Where, earlier: Found) -> bool:
    """Say whether what an earlier run wrote is there, by its bytes."""
    try:
        with reading(Path(where.path)) as file:
            if where.inode and os.fstat(file.fileno()).st_ino != where.inode:
                return False
            if portion.file and not _has_header(file, portion.file, earlier):
                return False
            offsets: dict[str, int] = {}
            for unit in portion.units:
                offsets.setdefault(unit.name, unit.offset)
            return all(
                _crc32(file.fileno(), offsets[name], done.size_bytes) == done.crc32
                for name, done in earlier.tensors
            )
    except OSError:
        return False


def _has_header(file: Any, planned: OutputFile, earlier: Found) -> bool:
    crcs = {name: done.crc32 for name, done in earlier.tensors}
    header = planned.header_with(crcs.get(placed.name, 0) for placed in planned.tensors)
    found = os.pread(file.fileno(), len(header), 0)
    return found == header and os.fstat(file.fileno()).st_size == planned.size_bytes


def _crc32(descriptor: int, offset: int, size_bytes: int) -> int:
    running, buffer = Running("crc32"), memoryview(bytearray(COPY_BUFFER))
    while size_bytes:
        block = buffer[: min(COPY_BUFFER, size_bytes)]
        count = os.preadv(descriptor, [block], offset)
        if not count:
            raise OSError("ends early")
        running.update(block[:count])
        offset, size_bytes = offset + count, size_bytes - count
    return running.crc32


def learned(tensor: LazyTensor, algorithm: Algorithm, where: None) -> list[Any]:
    """Find out what has to be known of a tensor that several tasks write."""
    return learn(learners(tensor), _writer(algorithm).scratch)


def kept(tensor: WholeTensor, algorithm: Algorithm, where: None) -> Array:
    """Compute what is small but dear."""
    return tensor.kept(_writer(algorithm).scratch)


def checked(checks: Sequence[tuple[str, Check]], algorithm: Algorithm, where: None) -> list[str]:
    """Look at tensor data before anything is written; return what checks report."""
    return Executor(Options(1, algorithm)).check(checks, 0)


def verified(records: Sequence[Record], algorithm: Algorithm, where: None) -> None:
    """Compare what input files say of their bytes with what they are."""
    Executor(Options(1, algorithm)).verify(records)


@dataclass(frozen=True)
class Sight:
    """What a process has and sees: its software, and each file as size, time and a hash."""

    software: str
    files: dict[str, tuple[int, int, str] | str]
    token: str = ""


def seen(paths: Sequence[str], token: str) -> Sight:
    """Return what a process sees of files, and of the folder that an output goes into."""
    return Sight(HERE, {path: _seen(path) for path in paths}, _token(token) if token else "")


def _seen(path: str) -> tuple[int, int, str] | str:
    try:
        with reading(Path(path)) as file:
            status = os.fstat(file.fileno())
            head = hashlib.sha256(file.read(_HEAD_BYTES)).hexdigest()
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return status.st_size, status.st_mtime_ns, head


def _token(path: str) -> str:
    """Return what a file in the output's folder says, once something could be made beside it."""
    beside = Path(f"{path}.{uuid.uuid4().hex}")
    try:
        beside.touch()
        beside.unlink()
        return Path(path).read_text("ascii")
    except OSError as error:
        return error.strerror or str(error)

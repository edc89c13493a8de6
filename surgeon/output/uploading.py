"""Planned tensor files as streams to where nobody can seek: object storage.

A header holds a fingerprint of what follows it, so a file that is too large to be held is made
twice: once for its checksums, and once for its bytes, which have to be the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from surgeon.base.errors import WriteError
from surgeon.output.execute import Executor, Options, Progress, Tally, Written
from surgeon.output.layout import OutputFile
from surgeon.output.units import Done, UnitWriter, whole_batch
from surgeon.output.workers import parallel_map
from surgeon.remote import client, wire
from surgeon.remote.client import Failure, Target

# Files up to this much are made once, in memory.
_HELD = 32 << 20
_LOOK_SECONDS = 0.2
# Seconds in which a worker may abort its upload.
_PATIENCE = 20.0
# Object storage takes at most 10 000 parts, of at least 5 MiB each.
_PART, _MOST_PARTS, _AT_ONCE = 8 << 20, 9_000, 4


@dataclass(frozen=True)
class _Task:
    """A file to be uploaded; `header` is known where it was measured before."""

    file: OutputFile
    target: Target
    header: bytes | None
    stated: Mapping[str, str]


class Uploader:
    """Makes files and uploads them, as many at a time as there are workers."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._silent = Executor(replace(options, progress=None))
        self._writer = UnitWriter(options.checksums)

    def upload(
        self, files: Sequence[OutputFile], targets: Mapping[str, Target],
        failed: Callable[[str, Failure], WriteError],
    ) -> Written:  # fmt: skip
        """Upload files to their targets, by name; `failed` makes an error of what went wrong."""
        has_content = self._options.checksums != "none"
        twice = [f for f in files if f.size_bytes > _HELD and f.content_at >= 0 and has_content]
        measured, headers = self._silent.measure(twice)
        tasks = []
        for file in files:
            header = headers.get(file.name)
            if header is None and (file.content_at < 0 or not has_content):
                header = file.header
            stated = measured.files[file.name].checksums if file.name in headers else {}
            tasks.append(_Task(file, targets[file.name], header, stated))
        written = Written(notes=measured.notes)
        wire.share()  # with the workers, which are forked next
        done = parallel_map(
            self._upload, tasks, self._options.workers, apart=True, patience=_PATIENCE
        )
        with _watched(self._options.progress):
            for task, one in zip(tasks, done, strict=True):
                if isinstance(one, Failure):
                    raise failed(task.file.name, one)
                written.add(one)
        return written

    def _upload(self, task: _Task) -> Written | Failure:
        tally = Tally([task.file], self._options.checksums)
        made = self._made(task.file, tally)
        try:
            if task.header is None:
                body = list(made)
                stream = iter([tally.header(task.file), *body])
            else:
                stream = _checked(task, made, tally)
            if task.file.size_bytes <= _HELD:
                client.put(task.target, b"".join(stream))
            else:
                part = _part_bytes(task.file.size_bytes)
                client.upload(task.target, _joined(stream, part), part, _AT_ONCE)
        except Failure as failure:
            return failure
        return tally.written

    def _made(self, file: OutputFile, tally: Tally) -> Iterator[bytes]:
        """Yield all bytes behind a file's header; tell what they were."""
        batch = whole_batch(file, self._options.checksums)
        done: list[Done] = []
        for block, _ in self._writer.stream(batch, done):
            wire.count_sent(len(block))
            yield bytes(block)
        for unit, one in zip(batch.units, done, strict=True):
            tally.add(file.name, unit.name, one, is_there=False)


def _checked(task: _Task, made: Iterator[bytes], tally: Tally) -> Iterator[bytes]:
    """Yield a file whose header is known; raises WriteError where it is not what was measured."""
    assert task.header is not None
    yield task.header
    yield from made
    tally.header(task.file)
    checksums = tally.written.files[task.file.name].checksums
    wrong = [name for name in task.stated if checksums.get(name) != task.stated[name]]
    if wrong:
        raise WriteError(
            f"{task.file.name}: '{wrong[0]}' was made otherwise the second time; an input "
            "changed, or the memory is not to be trusted"
        )


def _part_bytes(size_bytes: int) -> int:
    """Return how large the parts of a file are, so that it has no more than are taken."""
    needed = -(-size_bytes // _MOST_PARTS)
    return max(_PART, -(-needed // (1 << 20)) << 20)


@contextmanager
def _watched(progress: Progress | None) -> Iterator[None]:
    """Tell of bytes as the workers give them to be sent."""
    if progress is None:
        yield
        return
    ended, told = threading.Event(), wire.sent()

    def watch() -> None:
        nonlocal told
        is_last = False
        while not is_last:
            is_last = ended.wait(_LOOK_SECONDS)
            now = wire.sent()
            progress(now - told)
            told = now

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _joined(stream: Iterator[bytes], size_bytes: int) -> Iterator[bytes]:
    """Put blocks together to what is sent at once, however small they are."""
    held: list[bytes] = []
    total = 0
    for block in stream:
        held.append(block)
        total += len(block)
        if total >= size_bytes:
            yield b"".join(held)
            held, total = [], 0
    if held:
        yield b"".join(held)

"""An OutputPlan to object storage, where nothing can be renamed, and files appear one by one.

What is written under a name that was free appears in the order that leaves readers nothing to take
for the whole: tensor files, small files, the index, the manifest last. What would take the place
of a file is written beside it first, and copied over it by the storage once everything is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from surgeon.base.errors import CheckpointError, UsageError, WriteError, listed
from surgeon.base.files import reading
from surgeon.formats.fetched import is_fetched
from surgeon.formats.safetensors import header_sha256
from surgeon.manifest.model import Manifest, text
from surgeon.manifest.names import manifest_of
from surgeon.output.execute import Executor, Options, Written, WrittenFile
from surgeon.output.keeping import WAITING
from surgeon.output.layout import OutputFile
from surgeon.output.plan import OutputPlan
from surgeon.output.uploading import Uploader
from surgeon.output.workers import parallel_map
from surgeon.remote import calls, client
from surgeon.remote.client import Failure, Target
from surgeon.remote.paths import RemotePath, forget

# What the storages copy at once.
_LARGEST_COPY = 5 << 30
_CARRIED_BLOCK = 8 << 20


def write_elsewhere(
    plan: OutputPlan, path: RemotePath, options: Options, completed: Callable[[Written], Manifest]
) -> Written:
    """Write what is planned to object storage; a failed run takes back what it has written."""
    executor = Executor(options)
    notes = executor.check(plan.opened.plan.checks, sum(file.size_bytes for file in plan.weights))
    run = _Run(plan, path)
    try:
        written, copied = run.write_tensors(executor, options)
        executor.verify_records(plan.records, plan.tensor_files, written)
        for name, source in (plan.carried or {}).items():
            run.put(name, source)
        for name, content in (plan.texts or {}).items():
            run.put(name, content.encode("utf-8", "backslashreplace"))
        manifest = text(completed(written)).encode("utf-8", "backslashreplace")
        run.put(manifest_of(path).name, manifest)
        run.publish(options.workers)
    except BaseException:
        run.take_back()
        raise
    finally:
        forget(path)
    linked = [f"cannot be linked here, so copied: {listed(copied)}"] if copied else []
    written.notes += [*linked, *notes, *plan.notes]
    return written


def _put(item: tuple[Target, bytes | Path]) -> Failure | None:
    """Put a small file, or one that is carried along: where it can, the storage copies it."""
    target, what = item
    try:
        if isinstance(what, bytes):
            client.put(target, what)
        elif isinstance(what, RemotePath) and what.target.root == target.root:
            if what.target != target:  # in place, it is there
                client.copy(what.target, target)
        else:
            with reading(what) as file:
                blocks = iter(partial(file.read, _CARRIED_BLOCK), b"")
                if what.stat().st_size <= _CARRIED_BLOCK:
                    client.put(target, b"".join(blocks))
                else:
                    client.upload(target, blocks, _CARRIED_BLOCK, 2)
    except Failure as failure:
        return failure
    except OSError as error:
        raise CheckpointError(f"{what!s}: cannot be read: {error.strerror}") from None
    return None


def _linked(file: OutputFile, executor: Executor, options: Options) -> Written:
    """Return what is known of a file that the storage copied; its checksums need its bytes."""
    written = Written({file.name: WrittenFile()})
    if options.checksums != "none":
        written, _ = executor.measure([file])
    written.files[file.name].header_sha256 = header_sha256(file.header)
    written.linked_bytes = file.size_bytes - len(file.header)
    return written


class _Run:
    """The files of one output: where each goes, and what has been written of it."""

    def __init__(self, plan: OutputPlan, path: RemotePath) -> None:
        self._plan = plan
        self._path = path
        folder = plan.folder
        assert isinstance(folder, RemotePath)
        self._folder = folder
        names = {file.name for file in plan.tensor_files}
        beside = {manifest_of(path).name, *([plan.obsolete.name] if plan.obsolete else [])}
        known = folder.listed() if plan.is_folder else {*names, *beside}
        self._there = {name for name in known if plan.is_folder or (folder / name).exists()}
        self._waiting = names & self._there
        for file in plan.tensor_files:
            is_large = folder.scheme == "s3" and file.size_bytes > _LARGEST_COPY
            if file.name in self._waiting and is_large:
                raise UsageError(
                    f"{folder / file.name}: exists, and S3 cannot put a file of more than 5 GB in "
                    "its place in one step; write to another place, or into smaller files "
                    "(output.shard_size)"
                )
        # What was written to names that were free: it goes where the run fails.
        self._made: list[Target] = []
        self._small: list[tuple[str, bytes | Path]] = []
        self._is_published = False

    def write_tensors(self, executor: Executor, options: Options) -> tuple[Written, list[str]]:
        """Upload all tensor files, or have the storage copy those that are linked."""
        written, copied, uploaded = Written(), [], []
        for file in self._plan.tensor_files:
            if file.source is None:
                uploaded.append(file)
            elif self._copy_of(file):
                written.add(_linked(file, executor, options))
            else:
                copied.append(file.name)
                uploaded.append(file)
        targets = {file.name: self._target(file.name) for file in uploaded}
        self._made += targets.values()
        written.add(Uploader(options).upload(uploaded, targets, self._failed))
        return written, copied

    def _copy_of(self, file: OutputFile) -> bool:
        """Have the storage copy an input's file, where it is the same one."""
        source = file.source
        if source is None or not is_fetched(source):
            return False
        start, end = source.reader.target, self._target(file.name)
        if start.root != end.root or source.size_bytes > _LARGEST_COPY:
            return False
        self._made.append(end)
        self._call(file.name, client.copy, start, end)
        return True

    def put(self, name: str, data: bytes | Path) -> None:
        """Have a small file written, in its turn, once all tensors are there."""
        self._small.append((name, data))

    def publish(self, workers: int) -> None:
        """Have everything appear, the index and the manifest last; then what was replaced goes."""
        # Once something of what was there is replaced, nothing is undone any more.
        self._is_published = self._is_replacing
        if not self._is_published:
            self._made += [self._final(name) for name, _ in self._small]
        for name in sorted(self._waiting):
            self._call(name, client.copy, self._target(name), self._final(name))
        last = (self._plan.checkpoint, manifest_of(self._path).name)
        first = [one for one in self._small if one[0] not in last]
        self._put_all(first, workers)
        for one in self._small:
            if one[0] in last:
                self._put_all([one], 1)
        self._is_published = True
        self._remove_old()

    def _put_all(self, files: Sequence[tuple[str, bytes | Path]], workers: int) -> None:
        tasks = [(self._final(name), what) for name, what in files]
        done = parallel_map(_put, tasks, workers, apart=True)
        for (name, _), failure in zip(files, done, strict=True):
            if failure is not None:
                raise self._failed(name, failure)

    @property
    def _is_replacing(self) -> bool:
        return bool(self._waiting) or any(name in self._there for name, _ in self._small)

    def _remove_old(self) -> None:
        ours = {file.name for file in self._plan.tensor_files} | {name for name, _ in self._small}
        gone = [self._target(name) for name in self._waiting]
        old = {*self._plan.replaced, *([self._plan.obsolete.name] if self._plan.obsolete else [])}
        gone += [self._final(name) for name in sorted(old - ours) if name in self._there]
        self._call("", client.delete, gone)

    def take_back(self) -> None:
        """Delete what was written, unless it has begun to appear in place of something."""
        if self._is_published:
            return
        for target in self._made:
            try:
                calls.run(client.delete, [target])
            except Failure:
                continue  # it was not there yet, or cannot be reached: the error says so

    def _target(self, name: str) -> Target:
        return self._final(f"{WAITING}/{name}" if name in self._waiting else name)

    def _final(self, name: str) -> Target:
        path = self._folder / name
        assert isinstance(path, RemotePath)
        return path.target

    def _failed(self, name: str, failure: Failure) -> WriteError:
        return WriteError(f"{self._folder / name}: cannot be written: {failure.said}")

    def _call(self, name: str, function: Callable[..., None], *arguments: object) -> None:
        try:
            calls.run(function, *arguments)
        except Failure as failure:
            raise self._failed(name, failure) from None

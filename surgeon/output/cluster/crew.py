"""The workers of a cluster, who write an output's tensor files as this machine's would."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.base.elsewhere import Elsewhere
from surgeon.base.errors import UsageError, WriteError
from surgeon.draft import Check
from surgeon.formats.checkpoint import Record
from surgeon.lazy import WholeTensor, is_computed_at_once
from surgeon.lazy.apart import unknown
from surgeon.output.calls import allocate, write_all
from surgeon.output.checksums import Algorithm
from surgeon.output.cluster import work
from surgeon.output.cluster.crowd import (
    Cluster,
    Crowd,
    connected,
    reaching,
    require_alike,
    require_shared,
)
from surgeon.output.cluster.journal import Journal
from surgeon.output.cluster.pickling import close_inputs, packed
from surgeon.output.cluster.tasks import TASK_BYTES, Task, is_told, tasks_of
from surgeon.output.cluster.work import HERE, Answer, Found, Portion, Where
from surgeon.output.execute import Options, Tally, Written, pinning_notes, unverified
from surgeon.output.layout import OutputFile
from surgeon.output.plan import OutputPlan
from surgeon.output.publish import Publication

if TYPE_CHECKING:
    from distributed import Client, Future

# What is sent ahead for each worker: enough that none waits, and little that the scheduler holds.
_AHEAD = 3
# What one machine cannot and another may: its disk is full or broken, its mount is gone.
_OF_ONE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOENT, errno.EROFS)
_MOST_ATTEMPTS = 3


@dataclass
class _Sent:
    """A task that is with the workers: what it is, and on which of them it failed."""

    name: str
    work: Callable[[Any, Algorithm, Any], Any]
    data: bytes
    where: Any
    about: Any
    failed_on: set[str] = field(default_factory=set)

    @property
    def key(self) -> str:
        """The hash of all that decides about what it gives."""
        return sha256(self.data).hexdigest()


@dataclass
class Statistics:
    """What a run took: tasks, seconds of workers' processors, bytes that were sent."""

    tasks: int = 0
    worker_seconds: float = 0.0
    sent_bytes: int = 0


@contextmanager
def crew_of(
    cluster: Cluster, plan: OutputPlan, options: Options, *, resumes: bool, worker_bytes: int
) -> Iterator[ClusterCrew]:
    """Give the crew of a cluster, once its workers have what the run needs.

    `worker_bytes` is what each task takes. Raises UsageError for what differs on a worker.
    """
    # What is elsewhere is held to what it was by each answer.
    inputs = {path for given in plan.opened.checkpoints.values() for path in given.weight_files
              if not isinstance(path, Elsewhere)}  # fmt: skip
    with connected(cluster) as client:
        require_alike(client, inputs, worker_bytes)
        crew = ClusterCrew(client, options, plan.path, resumes=resumes)
        is_done = False
        try:
            yield crew
            is_done = True
        finally:
            crew.close(is_done=is_done)


class ClusterCrew:
    """Has the workers of a Dask cluster write; what is published is published here."""

    files_at_once = 1 << 40

    def __init__(self, client: Client, options: Options, output: Path, *, resumes: bool) -> None:
        if resumes and options.checksums == "none":
            raise UsageError("--resume goes by checksums, and --checksums none takes none")
        self._client = client
        self._options = options
        self._output = output
        self._resumes = resumes
        self._is_folder = True
        self._run = uuid.uuid4().hex
        self._journal = Journal(output, is_resumed=resumes)
        self.statistics = Statistics()

    def kept(self, plan: OutputPlan) -> Collection[str] | None:
        """Return which files of an earlier run are gone on with."""
        self._is_folder = plan.is_folder
        names = {file.name for file in plan.tensor_files if file.source is None}
        return names & self._journal.kept(plan.is_folder) if self._resumes else None

    def close(self, *, is_done: bool) -> None:
        """Let go of what workers have open, and of what nobody goes on with."""
        self._journal.close(is_done=is_done)
        with suppress(Exception):  # they may be gone
            self._client.run(close_inputs)

    def check(self, checks: Sequence[tuple[str, Check]], size_bytes: int) -> list[str]:
        """Have the checks made that look at tensor data; return what they report."""
        items = (_Sent(f"check {number}", work.checked, self._packed([check], check[0]), None, None)
                 for number, check in enumerate(checks, 1))  # fmt: skip
        return [note for _, notes in self._done(items) for note in notes]

    def verify_records(
        self, records: Sequence[Record], files: Sequence[OutputFile], written: Written
    ) -> None:
        """Have what input files say of their bytes compared, where writing did not."""
        groups: list[list[Record]] = [[]]
        size_bytes = 0
        for record in unverified(records, files, written):
            if size_bytes >= TASK_BYTES:
                groups.append([])
                size_bytes = 0
            groups[-1].append(record)
            size_bytes += record.size_bytes
        items = (
            _Sent(f"verify {number}", work.verified, self._packed(group, "records"), None, None)
            for number, group in enumerate(groups, 1)
            if group
        )
        for _ in self._done(items):
            pass

    def write(self, files: Sequence[OutputFile], output: Publication) -> Written:
        """Have planned files written; those with a `source` are there already."""
        self._journal.begin()
        tally = Tally(files, self._options.checksums)
        paths = {file.name: output.path(file.name) for file in files}
        folder = next(iter(paths.values())).parent
        require_shared(self._client, folder / f".{self._run}.shared")
        parts = folder / f".{self._run}.parts"
        wanted = []
        for file in files:
            if file.source is not None:
                tally.skip(file)
                if self._options.checksums == "none":
                    self._told(file.size_bytes - len(file.header))
                    tally.complete_at(file, paths[file.name])
                    continue
            wanted.append(file)
        parts.mkdir()
        try:
            self._write(wanted, paths, parts, tally)
        finally:
            shutil.rmtree(parts, ignore_errors=True)
        tally.written.notes += pinning_notes(files)
        return tally.written

    def _write(
        self, files: Sequence[OutputFile], paths: Mapping[str, Path], parts: Path, tally: Tally
    ) -> None:
        self._learn_what_is_kept(files)
        facts = self._facts(files)
        inodes: dict[str, int] = {}
        waiting: dict[str, dict[int, Found]] = {file.name: {} for file in files}

        def sent() -> Iterator[_Sent]:
            for task in tasks_of(files, self._options.checksums, in_place=not self._is_folder):
                for part in task.parts:
                    if not task.makes_files and part.file.name not in inodes:
                        path = paths[part.file.name]
                        inodes[part.file.name] = self._prepared(part.file, path)
                yield self._as_sent(task, paths, parts, inodes, facts)

        for one, found in self._done(sent()):
            task = one.about
            if not task.is_linked:
                names = [part.file.name for part in task.parts]
                self._journal.note_task(one.key, names, found)
            for part, made in zip(task.parts, found, strict=True):
                self._told(part.size_bytes)
                name = part.file.name
                waiting[name][part.number] = made
                if len(waiting[name]) == part.of:
                    done = waiting.pop(name)
                    self._complete(part.file, [done[n] for n in sorted(done)], tally, paths[name])

    def _as_sent(
        self, task: Task, paths: Mapping[str, Path], parts: Path, inodes: Mapping[str, int],
        facts: Mapping[int, list[Any]],
    ) -> _Sent:  # fmt: skip
        portions, places = [], []
        for part in task.parts:
            file = part.file
            told: dict[int, list[Any]] = {}
            for number, unit in enumerate(part.units):
                is_first = not number or part.units[number - 1].tensor is not unit.tensor
                if is_first and id(unit.tensor) in facts:
                    told[number] = facts[id(unit.tensor)]
            portions.append(
                Portion(
                    part.units,
                    file if task.makes_files else None,
                    file.header if file.is_hashed else None,
                    told,
                )
            )
            places.append(
                Where(str(paths[file.name]), str(parts), inodes.get(file.name, 0), task.is_linked)
            )
        sent = _Sent(task.name, work.written, self._packed(portions, task.name), places, task)
        if earlier := self._journal.tasks.get(sent.key):
            pairs = zip(places, earlier, strict=True)
            sent.where = [replace(place, earlier=found) for place, found in pairs]
        return sent

    def _prepared(self, file: OutputFile, path: Path) -> int:
        """Have a file there that tasks write parts of; return its inode."""
        if file.source is not None:
            return path.stat().st_ino
        is_kept = self._journal.is_kept(file.name, path)
        if self._is_folder and not is_kept:
            path.unlink(missing_ok=True)
            path.touch(exist_ok=False)
        with path.open("r+b", buffering=0) as opened:
            if not is_kept:
                allocate(opened.fileno(), file.size_bytes)
                write_all(opened.fileno(), memoryview(file.header), 0)
                os.fsync(opened.fileno())
            inode = os.fstat(opened.fileno()).st_ino
        self._journal.note_place(file.name, inode)
        return inode

    def _complete(self, file: OutputFile, found: Sequence[Found], tally: Tally, path: Path) -> None:
        for made in found:
            for name, done in made.tensors:
                tally.add(file.name, name, done, is_there=file.source is not None)
        tally.complete_at(file, path)

    def _learn_what_is_kept(self, files: Sequence[OutputFile]) -> None:
        """Have small but dear values computed once, before each task would do it for itself."""
        forms: dict[int, WholeTensor] = {}
        for file in files:
            for placed in file.tensors:
                if is_computed_at_once(placed.tensor):
                    forms |= {id(form): form for form in unknown(placed.tensor)}
        items = (
            _Sent(f"whole tensor {number}", work.kept, self._packed(form, "a whole tensor"), None,
                  form)
            for number, form in enumerate(forms.values(), 1)
        )  # fmt: skip
        for one, values in self._done(items):
            one.about.keep(values)

    def _facts(self, files: Sequence[OutputFile]) -> dict[int, list[Any]]:
        """Return what has to be known of the tensors that several tasks write parts of."""
        told = (
            placed
            for file in files
            if not file.is_hashed and file.source is None
            for placed in file.tensors
            if is_told(placed, self._options.checksums)
        )
        items = (
            _Sent(f"{placed.name} as a whole", work.learned,
                  self._packed(placed.tensor, placed.name), None, placed.tensor)
            for placed in told
        )  # fmt: skip
        return {id(one.about): facts for one, facts in self._done(items)}

    def _told(self, size_bytes: int) -> None:
        if self._options.progress:
            self._options.progress(size_bytes)

    def _packed(self, value: object, what: str) -> bytes:
        return packed(value, what)

    def _done(self, items: Iterable[_Sent]) -> Iterator[tuple[_Sent, Any]]:
        """Send tasks, a few ahead of the workers, and yield what they gave as it comes."""
        waiting = iter(items)
        pending: dict[Future, _Sent] = {}
        crowd = Crowd(self._client)
        try:
            while True:
                while len(pending) < _AHEAD * crowd.size and (one := next(waiting, None)):
                    pending[self._submitted(one)] = one
                if not pending:
                    return
                for future in crowd.first_done(pending):
                    one = pending.pop(future)
                    answer = crowd.answer(future, one.name)
                    if answer.failed is None:
                        self.statistics.worker_seconds += answer.seconds
                        yield one, answer.value
                    else:
                        pending[self._again(one, answer, crowd)] = one
        finally:
            with suppress(Exception):  # the scheduler may be gone
                self._client.cancel(list(pending), force=True)

    def _submitted(self, one: _Sent, workers: list[str] | None = None) -> Future:
        self.statistics.tasks += 1
        self.statistics.sent_bytes += len(one.data)
        name = f"{one.name}-{self._run[:8]}-{self.statistics.tasks}"
        with reaching(self._client):
            return self._client.submit(
                work.answered, one.work, one.data, self._options.checksums, one.where, HERE,
                key=name, pure=False, workers=workers,
            )  # fmt: skip

    def _again(self, one: _Sent, answer: Answer, crowd: Crowd) -> Future:
        """Have another worker try what one cannot do; raises where that would be of no use."""
        assert answer.failed is not None
        one.failed_on.add(answer.worker)
        others = [worker for worker in crowd.workers if worker not in one.failed_on]
        if answer.errno in _OF_ONE_MACHINE and others and len(one.failed_on) < _MOST_ATTEMPTS:
            return self._submitted(one, others)
        if answer.errno:
            on = " and ".join(sorted(one.failed_on))
            raise WriteError(f"{self._output}: {one.name} on {on}: {answer.problems[0]}")
        raise answer.failed(*answer.problems)

"""Run commands side by side: wall time, peak memory, and what each leaves unwritten.

A child's `ru_maxrss` is at least what its parent had at its height, since it starts as a copy of
it: nothing that needs memory may be imported here, or by what imports this.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

# Relative to the folder that commands run in; emptied before every run.
OUTPUT = "out"
_READ_BYTES = 1 << 20


class CommandFailedError(Exception):
    """A command ended with another exit code than 0."""


@dataclass(frozen=True)
class Command:
    """What to run, and which files it reads, all relative to the data's folder."""

    arguments: Sequence[str]
    inputs: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One run of one command, imports included."""

    seconds: float
    # Until what it wrote was on the disk, too; a copy returns before that.
    durable_seconds: float
    # Of the whole process: code, libraries and mapped files included.
    peak_bytes: int


@dataclass(frozen=True)
class Runs:
    """All runs of one command."""

    runs: Sequence[Run]

    @property
    def seconds(self) -> float:
        return median(run.seconds for run in self.runs)

    @property
    def durable_seconds(self) -> float:
        return median(run.durable_seconds for run in self.runs)

    @property
    def peak_bytes(self) -> int:
        return max(run.peak_bytes for run in self.runs)

    @property
    def range(self) -> tuple[float, float]:
        return min(r.seconds for r in self.runs), max(r.seconds for r in self.runs)


def side_by_side(folder: Path, commands: Sequence[Command], repeat: int) -> list[Runs]:
    """Run the commands in turn, `repeat` times, so that noise hits all of them alike."""
    rounds = [[_run(folder, command) for command in commands] for _ in range(repeat)]
    clear(folder)
    return [Runs(runs) for runs in zip(*rounds, strict=True)]


def _run(folder: Path, command: Command) -> Run:
    """Time one run: no old output, nothing left to write back, inputs in the page cache."""
    clear(folder)
    os.sync()
    for name in command.inputs:
        _warm(folder / name)
    began = time.perf_counter()
    process = _start(folder, command)
    # Reads to the end, so that a talkative command never waits for us; what is kept is short.
    complaint = process.stderr.read()[-2000:] if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.stderr:
        process.stderr.close()
    _check(process.returncode, complaint)
    for path in (folder / OUTPUT).rglob("*"):
        _flush(path)
    return Run(seconds, time.perf_counter() - began, usage.ru_maxrss * 1024)


def _start(folder: Path, command: Command) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command.arguments,
        cwd=folder,
        env={**_as_for_users(), **command.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _as_for_users() -> dict[str, str]:
    """Leave out what was set for us: without its bytecode, each start compiles surgeon again."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _check(exit_code: int, complaint: bytes) -> None:
    if exit_code:
        lines = complaint.decode(errors="replace").strip().splitlines() or ["nothing said"]
        raise CommandFailedError(f"exit code {exit_code}: {lines[-1]}")


def imports(folder: Path, command: Command) -> set[str]:
    """Return the top-level modules that a Python command imports.

    Not timed: it also compiles what is not compiled yet, and reads it into the page cache.
    """
    clear(folder)
    told = Command(
        command.arguments, environment={**command.environment, "PYTHONPROFILEIMPORTTIME": "1"}
    )
    process = _start(folder, told)
    _, output = process.communicate()
    _check(process.returncode, output)
    clear(folder)
    lines = output.decode(errors="replace").splitlines()
    names = [ln.rpartition("|")[2].strip() for ln in lines if ln.startswith("import time:")]
    return {name.partition(".")[0] for name in names}


def clear(folder: Path) -> None:
    """Leave an empty folder for output."""
    shutil.rmtree(folder / OUTPUT, ignore_errors=True)
    (folder / OUTPUT).mkdir(parents=True)


def _warm(path: Path) -> None:
    """Bring a file, or all files of a folder, into the page cache."""
    buffer = bytearray(_READ_BYTES)
    for file in path.iterdir() if path.is_dir() else [path]:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

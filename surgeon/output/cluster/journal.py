"""What a run has completed, written down beside its output, so that another can go on with it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

from surgeon.base.files import read_regular
from surgeon.formats.swapping import temporary_beside
from surgeon.output.cluster.work import Found
from surgeon.output.temporaries import require_ours
from surgeon.output.units import Done

_LONGEST = 1 << 30


class Journal:
    """Lines of JSON: a file that is written in place, or a task with what it found.

    A task is known by a hash of all that decides about its bytes, so what another recipe or other
    inputs left is of no use, and does no harm.
    """

    def __init__(self, output: Path, *, is_resumed: bool) -> None:
        output = Path(os.path.realpath(output))
        self._output = output
        self._path = temporary_beside(output.with_name(f"{output.name}.journal"))
        self._is_resumed = is_resumed
        self._descriptor: int | None = None
        # What an earlier run wrote down: tasks by their keys, files in place by their inodes.
        self.tasks: dict[str, list[Found]] = {}
        self._places: dict[str, int] = {}
        self._files: set[str] = set()
        if is_resumed:
            with suppress(FileNotFoundError, ValueError):
                require_ours(self._path, self._path.lstat(), stat.S_ISREG)
                self._read(read_regular(self._path, _LONGEST).decode())

    def _read(self, text: str) -> None:
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                if "inode" in entry:
                    self._places[entry["file"]] = entry["inode"]
                else:
                    self.tasks[entry["task"]] = [_found(part) for part in entry["parts"]]
                    self._files |= set(entry["files"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # the line that the run was killed in

    def kept(self, is_folder: bool) -> set[str]:
        """Return the names of the files that there may be something of."""
        folder = temporary_beside(self._output) if is_folder else self._output.parent
        places = {name: folder / name for name in self._places}
        if not is_folder:
            places = {name: temporary_beside(place) for name, place in places.items()}
        in_place = {name for name, place in places.items() if self.is_kept(name, place)}
        return self._files - self._places.keys() | in_place

    def is_kept(self, name: str, path: Path) -> bool:
        """Say whether a file is the one that an earlier run wrote in place."""
        with suppress(OSError):
            return path.lstat().st_ino == self._places.get(name)
        return False

    def begin(self) -> None:
        """Open it, once no other run may write this output."""
        if not self._is_resumed:
            with suppress(FileNotFoundError):
                self._path.unlink()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags | os.O_NONBLOCK, 0o600)
        found = os.fstat(self._descriptor)
        require_ours(self._path, found, lambda mode: stat.S_ISREG(mode) and found.st_nlink == 1)

    def note_place(self, file: str, inode: int) -> None:
        """Write down which file is written in place."""
        self._write({"file": file, "inode": inode})

    def note_task(self, key: str, files: list[str], parts: list[Found]) -> None:
        """Write down what a task completed."""
        told = [[(name, *astuple(done)) for name, done in part.tensors] for part in parts]
        self._write({"task": key, "files": files, "parts": told})

    def _write(self, entry: Mapping[str, Any]) -> None:
        assert self._descriptor is not None
        os.write(self._descriptor, json.dumps(entry, separators=(",", ":")).encode() + b"\n")

    def close(self, *, is_done: bool) -> None:
        """Close it; what is done, or may not be gone on with, needs none."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            if is_done or not self._is_resumed:
                with suppress(OSError):
                    self._path.unlink()


def _found(entries: list[list[Any]]) -> Found:
    return Found([(name, Done(*done)) for name, *done in entries])
